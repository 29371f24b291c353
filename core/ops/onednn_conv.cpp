// Convolution primitives. Activations stay channels-last; weights are copied to the layout a primitive likes best in
// each run, which costs microseconds and keeps one layout for everybody else (optimizer, checkpoint).
//
// Delicate: a gradient by data with stride 1 is itself a convolution, of dy with the kernel turned by 180 degrees and
// its channel axes swapped. oneDNN's forward kernels are faster than its backward ones on processors with AVX-512, so
// that form is used there.
#include <dnnl.hpp>
#include <string>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/ops/onednn.h"
#include "core/ops/onednn_runtime.h"

namespace castor::onednn {
namespace {

using dnnl::memory;

constexpr auto kType = memory::data_type::f32;
constexpr auto kAny = memory::format_tag::any;

/// Shapes of a problem as oneDNN wants them.
struct Descriptors {
  memory::dims stride, dilation, padding;
  memory::desc x, weight, any_weight, bias, y;

  explicit Descriptors(const ConvProblem& p)
      : stride{p.stride_height, p.stride_width},
        dilation{p.dilation_height - 1, p.dilation_width - 1},
        padding{p.padding_height, p.padding_width},
        x({p.batch, p.in_channels, p.in_height, p.in_width}, kType, memory::format_tag::nhwc),
        y({p.batch, p.out_channels, p.out_height, p.out_width}, kType, memory::format_tag::nhwc) {
    const bool is_grouped = p.groups > 1;
    const std::int64_t in = p.in_channels / p.groups, out = p.out_channels / p.groups;
    const memory::dims sizes = is_grouped ? memory::dims{p.groups, out, in, p.kernel_height, p.kernel_width}
                                          : memory::dims{out, in, p.kernel_height, p.kernel_width};
    weight = memory::desc(sizes, kType, is_grouped ? memory::format_tag::goihw : memory::format_tag::oihw);
    any_weight = memory::desc(sizes, kType, kAny);
    if (p.has_bias) bias = memory::desc({p.out_channels}, kType, memory::format_tag::a);
  }
};

dnnl::convolution_forward::primitive_desc forward_description(const Descriptors& d,
                                                              const dnnl::primitive_attr& attributes) {
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto kind = dnnl::prop_kind::forward_training;
  const auto description = d.bias.is_zero()
                               ? dnnl::convolution_forward::desc(kind, algorithm, d.x, d.any_weight, d.y, d.stride,
                                                                 d.dilation, d.padding, d.padding)
                               : dnnl::convolution_forward::desc(kind, algorithm, d.x, d.any_weight, d.bias, d.y,
                                                                 d.stride, d.dilation, d.padding, d.padding);
  return {description, attributes, engine()};
}

dnnl::primitive_attr user_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

/// What the three directions share: memory handles and the copy of the weights before or after the primitive.
class ConvEntry : public Conv {
 public:
  std::size_t workspace_bytes() const override { return packed_bytes_ + scratchpad_bytes_; }
  std::string_view implementation() const override { return implementation_; }

  void run(void* x, void* weight, void* bias, void* y, void* workspace) override {
    x_.set_data_handle(x);
    y_.set_data_handle(y);
    weight_.set_data_handle(weight);
    if (bias_) bias_.set_data_handle(bias);
    if (scratchpad_bytes_ != 0) scratchpad_.set_data_handle(static_cast<char*>(workspace) + packed_bytes_);
    if (packed_bytes_ != 0) packed_.set_data_handle(workspace);
    if (copy_ && !is_weight_result_) copy_.execute(stream(), {{DNNL_ARG_FROM, weight_}, {DNNL_ARG_TO, packed_}});
    primitive_.execute(stream(), arguments_);
    if (copy_ && is_weight_result_) copy_.execute(stream(), {{DNNL_ARG_FROM, packed_}, {DNNL_ARG_TO, weight_}});
  }

 protected:
  /// Sets everything up for `description`, whose weights lie as `packed`. The arguments are oneDNN's names of x,
  /// weights and y.
  template <class Description>
  void prepare(const Descriptors& d, const Description& description, const memory::desc& packed, int x_argument,
               int weight_argument, int y_argument) {
    implementation_ = description.impl_info_str();
    scratchpad_bytes_ = description.scratchpad_desc().get_size();
    is_weight_result_ = weight_argument == DNNL_ARG_DIFF_WEIGHTS;
    x_ = memory(d.x, engine(), DNNL_MEMORY_NONE);
    y_ = memory(d.y, engine(), DNNL_MEMORY_NONE);
    weight_ = memory(d.weight, engine(), DNNL_MEMORY_NONE);
    scratchpad_ = memory(description.scratchpad_desc(), engine(), DNNL_MEMORY_NONE);
    packed_ = weight_;
    if (packed != d.weight) {
      packed_ = memory(packed, engine(), DNNL_MEMORY_NONE);
      packed_bytes_ = aligned(packed.get_size());
      copy_ = is_weight_result_ ? dnnl::reorder(dnnl::reorder::primitive_desc(packed_, weight_))
                                : dnnl::reorder(dnnl::reorder::primitive_desc(weight_, packed_));
    }
    arguments_ = {{x_argument, x_}, {weight_argument, packed_}, {y_argument, y_}, {DNNL_ARG_SCRATCHPAD, scratchpad_}};
  }

  dnnl::primitive primitive_;
  dnnl::reorder copy_;
  memory x_, y_, weight_, packed_, bias_, scratchpad_;
  std::unordered_map<int, memory> arguments_;
  std::size_t scratchpad_bytes_ = 0, packed_bytes_ = 0;
  bool is_weight_result_ = false;
  std::string implementation_;
};

class ForwardEntry final : public ConvEntry {
 public:
  explicit ForwardEntry(const ConvProblem& problem) {
    const Descriptors d(problem);
    const auto description = forward_description(d, user_scratchpad());
    primitive_ = dnnl::convolution_forward(description);
    prepare(d, description, description.weights_desc(), DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST);
    if (problem.has_bias) {
      bias_ = memory(d.bias, engine(), DNNL_MEMORY_NONE);
      arguments_.emplace(DNNL_ARG_BIAS, bias_);
    }
  }
};

class BackwardDataEntry final : public ConvEntry {
 public:
  explicit BackwardDataEntry(const ConvProblem& problem) {
    const Descriptors d(problem);
    const dnnl::convolution_backward_data::desc description(dnnl::algorithm::convolution_direct, d.x, d.any_weight, d.y,
                                                            d.stride, d.dilation, d.padding, d.padding);
    const dnnl::convolution_backward_data::primitive_desc chosen(description, user_scratchpad(), engine(),
                                                                 forward_description(d, {}));
    primitive_ = dnnl::convolution_backward_data(chosen);
    prepare(d, chosen, chosen.weights_desc(), DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST);
  }
};

class BackwardWeightEntry final : public ConvEntry {
 public:
  explicit BackwardWeightEntry(const ConvProblem& problem) {
    const Descriptors d(problem);
    const dnnl::convolution_backward_weights::desc description(dnnl::algorithm::convolution_direct, d.x, d.any_weight,
                                                               d.y, d.stride, d.dilation, d.padding, d.padding);
    const auto forward = forward_description(d, {});  // lives as long as implementations are looked for
    dnnl::convolution_backward_weights::primitive_desc chosen(description, user_scratchpad(), engine(), forward);
    // oneDNN 2.6.3 gathers the pixels that a stride leaves as whole vectors of channels, in room for as many as there
    // are: with fewer than a multiple of 8 it writes past its scratchpad.
    constexpr std::int64_t kVector = 8;
    const bool is_strided = problem.stride_height > 1 || problem.stride_width > 1;
    while (is_strided && problem.in_channels % kVector != 0 &&
           std::string_view(chosen.impl_info_str()) == "jit_1x1:avx2") {
      if (!chosen.next_impl()) throw dnnl::error(dnnl_unimplemented, "no implementation stays in its scratchpad");
    }
    primitive_ = dnnl::convolution_backward_weights(chosen);
    prepare(d, chosen, chosen.diff_weights_desc(), DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST);
  }
};

/// The gradient by data as a forward convolution with turned weights.
class TurnedEntry final : public Conv {
 public:
  explicit TurnedEntry(const ConvProblem& p) : problem_(p), forward_(turned(p)) {
    turned_bytes_ =
        aligned(static_cast<std::size_t>(p.in_channels * p.out_channels / p.groups * p.kernel_height * p.kernel_width) *
                sizeof(float));
    implementation_ = std::string(forward_.implementation()) + " of dy";
  }

  static ConvProblem turned(const ConvProblem& p) {
    ConvProblem result = p;
    std::swap(result.in_channels, result.out_channels);
    std::swap(result.in_height, result.out_height);
    std::swap(result.in_width, result.out_width);
    result.padding_height = p.dilation_height * (p.kernel_height - 1) - p.padding_height;
    result.padding_width = p.dilation_width * (p.kernel_width - 1) - p.padding_width;
    result.has_bias = false;
    return result;
  }

  std::size_t workspace_bytes() const override { return turned_bytes_ + forward_.workspace_bytes(); }
  std::string_view implementation() const override { return implementation_; }

  void run(void* x, void* weight, void*, void* y, void* workspace) override {
    turn(static_cast<const float*>(weight), static_cast<float*>(workspace));
    forward_.run(y, workspace, nullptr, x, static_cast<char*>(workspace) + turned_bytes_);
  }

 private:
  void turn(const float* from, float* to) const {
    const std::int64_t in = problem_.in_channels / problem_.groups, out = problem_.out_channels / problem_.groups;
    const std::int64_t taps = problem_.kernel_height * problem_.kernel_width;
    for (std::int64_t group = 0; group < problem_.groups; ++group) {
      for (std::int64_t i = 0; i < in; ++i) {
        for (std::int64_t o = 0; o < out; ++o) {
          const float* const source = from + ((group * out + o) * in + i) * taps;
          float* const target = to + ((group * in + i) * out + o) * taps;
          for (std::int64_t tap = 0; tap < taps; ++tap) target[tap] = source[taps - 1 - tap];
        }
      }
    }
  }

  ConvProblem problem_;
  ForwardEntry forward_;
  std::size_t turned_bytes_;
  std::string implementation_;
};

bool is_turnable(const ConvProblem& p) {
  return p.stride_height == 1 && p.stride_width == 1 && p.padding_height <= p.dilation_height * (p.kernel_height - 1) &&
         p.padding_width <= p.dilation_width * (p.kernel_width - 1);
}

/// By tests/bench/conv_choices.cpp: with AVX-512 the forward kernels win, with AVX2 both are the same code.
bool is_turned(const ConvProblem& problem, ConvAlgorithm algorithm) {
  if (algorithm == ConvAlgorithm::automatic) return is_turnable(problem) && instruction_set().starts_with("avx512");
  if (algorithm == ConvAlgorithm::turned && !is_turnable(problem))
    throw InternalError("conv2d: this geometry has no turned form");
  return algorithm == ConvAlgorithm::turned;
}

Key key_of(const ConvProblem& p) {
  return {p.batch,          p.groups,        p.in_channels,     p.out_channels,   p.in_height,     p.in_width,
          p.out_height,     p.out_width,     p.kernel_height,   p.kernel_width,   p.stride_height, p.stride_width,
          p.padding_height, p.padding_width, p.dilation_height, p.dilation_width, p.has_bias,      num_threads()};
}

template <class Make>
std::unique_ptr<Conv> make_or_throw(const char* direction, const ConvProblem& p, Make&& make) {
  try {
    return make();
  } catch (const dnnl::error& failure) {
    throw InternalError(cat("conv2d: oneDNN has no ", direction, " primitive for x [", p.batch, ",", p.in_channels, ",",
                            p.in_height, ",", p.in_width, "], weight [", p.out_channels, ",", p.in_channels / p.groups,
                            ",", p.kernel_height, ",", p.kernel_width, "], groups ", p.groups, ": ", failure.what()));
  }
}

}  // namespace

Conv& conv_forward(const ConvProblem& problem) {
  thread_local Cache<Conv> cache;
  return cache.find_or_make(key_of(problem), [&] {
    return make_or_throw("forward", problem, [&] { return std::make_unique<ForwardEntry>(problem); });
  });
}

Conv& conv_backward_data(const ConvProblem& problem, ConvAlgorithm algorithm) {
  thread_local Cache<Conv> cache;
  Key key = key_of(problem);
  key.back() = static_cast<std::int64_t>(algorithm);
  return cache.find_or_make(key, [&] {
    return make_or_throw("backward-by-data", problem, [&]() -> std::unique_ptr<Conv> {
      if (is_turned(problem, algorithm)) return std::make_unique<TurnedEntry>(problem);
      return std::make_unique<BackwardDataEntry>(problem);
    });
  });
}

Conv& conv_backward_weights(const ConvProblem& problem) {
  thread_local Cache<Conv> cache;
  return cache.find_or_make(key_of(problem), [&] {
    return make_or_throw("backward-by-weights", problem,
                         [&] { return std::make_unique<BackwardWeightEntry>(problem); });
  });
}

}  // namespace castor::onednn
