// Prints how fast each candidate computes the three directions of a convolution, and which one Castor uses: why
// activations are channels-last, and when a gradient by data is a turned forward convolution.
//
// `--repeats R` sets the rounds. Other arguments: shapes n,c,size,o,kernel,stride,padding instead of the built-in ones.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/ops/onednn.h"
#include "core/ops/workspace.h"
#include "tests/bench/conv_candidates.h"
#include "tests/bench/measure.h"
#include "tests/bench/race.h"

namespace castor::bench {
namespace {

/// The convolutions of the benchmarked models: LeNet's two, and those of the small ResNet.
constexpr ConvShape kShapes[] = {{128, 1, 28, 32, 5, 1, 2}, {128, 32, 14, 64, 5, 1, 2}, {64, 1, 28, 16, 3, 1, 1},
                                 {64, 16, 28, 16, 3, 1, 1}, {64, 16, 28, 32, 3, 2, 1},  {64, 16, 28, 32, 1, 2, 0},
                                 {64, 32, 14, 32, 3, 1, 1}, {64, 64, 7, 64, 3, 1, 1},   {64, 64, 7, 128, 3, 2, 1},
                                 {64, 128, 4, 128, 3, 1, 1}};

onednn::ConvProblem problem_of(const ConvShape& s) {
  onednn::ConvProblem p;
  p.batch = s.batch;
  p.in_channels = s.in_channels;
  p.out_channels = s.out_channels;
  p.in_height = p.in_width = s.size;
  p.out_height = p.out_width = s.out_size();
  p.kernel_height = p.kernel_width = s.kernel;
  p.stride_height = p.stride_width = s.stride;
  p.padding_height = p.padding_width = s.padding;
  return p;
}

/// Castor's own wrapper. `find` looks the primitive up.
template <class Find>
Candidate wrapper_candidate(const char* name, const ConvBuffers& b, bool has_bias, Find find) {
  const onednn::Conv& conv = find();
  const Tensor workspace = make_workspace(std::max<std::size_t>(conv.workspace_bytes(), 1), kCpu);
  return {cat(name, " [", conv.implementation(), "]"),
          [=] { find().run(b.x, b.weight, has_bias ? b.bias : nullptr, b.y, workspace.view().data); }};
}

void compare(ConvDirection direction, const ConvShape& s, int rounds) {
  const auto floats = [](std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count), 0.25f); };
  std::vector<float> x = floats(s.batch * s.in_channels * s.size * s.size), bias = floats(s.out_channels);
  std::vector<float> weight = floats(s.out_channels * s.in_channels * s.kernel * s.kernel);
  std::vector<float> y = floats(s.batch * s.out_channels * s.out_size() * s.out_size());
  const ConvBuffers buffers{x.data(), weight.data(), bias.data(), y.data()};

  onednn::ConvProblem problem = problem_of(s);
  std::vector<Candidate> candidates;
  std::size_t chosen = 0;
  const char* name = "forward";
  if (direction == ConvDirection::forward) {
    problem.has_bias = true;
    candidates.push_back(wrapper_candidate("channels-last", buffers, true,
                                           [problem]() -> onednn::Conv& { return onednn::conv_forward(problem); }));
  } else if (direction == ConvDirection::data_gradient) {
    name = "data gradient";
    using onednn::ConvAlgorithm;
    const auto with = [problem](ConvAlgorithm algorithm) {
      return [problem, algorithm]() -> onednn::Conv& { return onednn::conv_backward_data(problem, algorithm); };
    };
    candidates.push_back(wrapper_candidate("channels-last, direct", buffers, false, with(ConvAlgorithm::direct)));
    if (s.stride == 1 && s.padding < s.kernel) {
      candidates.push_back(wrapper_candidate("channels-last, turned", buffers, false, with(ConvAlgorithm::turned)));
      const std::string used(onednn::conv_backward_data(problem).implementation());
      chosen = used == onednn::conv_backward_data(problem, ConvAlgorithm::turned).implementation() ? 1 : 0;
    }
  } else {
    name = "weight gradient";
    candidates.push_back(wrapper_candidate("channels-last", buffers, false, [problem]() -> onednn::Conv& {
      return onednn::conv_backward_weights(problem);
    }));
  }
  candidates.push_back(blocked_candidate(direction, s, buffers));
  candidates.push_back(row_major_candidate(direction, s, buffers));
  const double flops = 2.0 * static_cast<double>(y.size()) * static_cast<double>(s.in_channels * s.kernel * s.kernel);
  race(cat("conv ", s.batch, "x", s.in_channels, "x", s.size, "x", s.size, " to ", s.out_channels, ", kernel ",
           s.kernel, ", stride ", s.stride, " ", name),
       flops, rounds, candidates, chosen);
}

std::vector<ConvShape> read_shapes(const std::vector<std::string>& arguments) {
  std::vector<ConvShape> shapes(std::begin(kShapes), std::end(kShapes));
  if (!arguments.empty()) shapes.clear();
  for (const std::string& argument : arguments) {
    long long v[7] = {};
    const int read = std::sscanf(argument.c_str(), "%lld,%lld,%lld,%lld,%lld,%lld,%lld", v, v + 1, v + 2, v + 3, v + 4,
                                 v + 5, v + 6);
    if (read != 7 || *std::min_element(v, v + 6) <= 0 || v[6] < 0 || v[2] + 2 * v[6] < v[4]) {
      throw ConfigError(cat("conv_choices: expected a shape n,c,size,o,kernel,stride,padding, got '", argument, "'"),
                        argument);
    }
    shapes.push_back({v[0], v[1], v[2], v[3], v[4], v[5], v[6]});
  }
  return shapes;
}

}  // namespace
}  // namespace castor::bench

int main(int argc, char** argv) {
  using namespace castor::bench;
  try {
    Timing timing;
    timing.repeats = 15;
    const auto shapes = read_shapes(read_arguments(argc, argv, timing));
    std::fprintf(stderr, "instruction set of oneDNN: %s; * = used by Castor\n",
                 std::string(castor::onednn::instruction_set()).c_str());
    for (const ConvShape& shape : shapes) {
      compare(ConvDirection::forward, shape, timing.repeats);
      if (shape.in_channels > 1) compare(ConvDirection::data_gradient, shape, timing.repeats);
      compare(ConvDirection::weight_gradient, shape, timing.repeats);
    }
  } catch (const castor::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
