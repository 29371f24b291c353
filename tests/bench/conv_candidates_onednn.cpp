// oneDNN's convolutions in the two layouts that Castor does not use.
#include <dnnl.hpp>
#include <memory>
#include <vector>

#include "tests/bench/conv_candidates.h"

namespace castor::bench {
namespace {

using dnnl::memory;
constexpr auto kType = memory::data_type::f32;

/// A primitive with the copies before and after it.
struct Call {
  struct Copy {
    dnnl::reorder primitive;
    memory from, to;
  };
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::primitive primitive;
  std::unordered_map<int, memory> arguments;
  std::vector<Copy> before, after;

  /// Passes `outside` as the argument, through a copy where the primitive wants another layout.
  void add(int argument, const memory& outside, const memory::desc& wanted, bool is_result) {
    memory inside = outside;
    if (wanted != outside.get_desc()) {
      inside = memory(wanted, engine);
      const memory& from = is_result ? inside : outside;
      const memory& to = is_result ? outside : inside;
      (is_result ? after : before).push_back({dnnl::reorder(from, to), from, to});
    }
    arguments.emplace(argument, inside);
  }

  void run() {
    for (Copy& copy : before) copy.primitive.execute(stream, copy.from, copy.to);
    primitive.execute(stream, arguments);
    for (Copy& copy : after) copy.primitive.execute(stream, copy.from, copy.to);
  }
};

Candidate make(ConvDirection direction, const ConvShape& s, const ConvBuffers& buffers, memory::format_tag layout,
               const char* name) {
  auto call = std::make_shared<Call>();
  const memory::dims x_sizes{s.batch, s.in_channels, s.size, s.size},
      y_sizes{s.batch, s.out_channels, s.out_size(), s.out_size()};
  const memory::dims weight_sizes{s.out_channels, s.in_channels, s.kernel, s.kernel}, stride{s.stride, s.stride},
      padding{s.padding, s.padding};
  const memory::desc x(x_sizes, kType, layout), y(y_sizes, kType, layout),
      weight(weight_sizes, kType, memory::format_tag::any);
  const memory::desc bias({s.out_channels}, kType, memory::format_tag::a);
  const memory outer_x({x_sizes, kType, memory::format_tag::nhwc}, call->engine, buffers.x);
  const memory outer_y({y_sizes, kType, memory::format_tag::nhwc}, call->engine, buffers.y);
  const memory outer_weight({weight_sizes, kType, memory::format_tag::oihw}, call->engine, buffers.weight);
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(
      dnnl::convolution_forward::desc(dnnl::prop_kind::forward_training, algorithm, x, weight, bias, y, stride, padding,
                                      padding),
      call->engine);
  std::string implementation;
  if (direction == ConvDirection::forward) {
    call->primitive = dnnl::convolution_forward(forward);
    implementation = forward.impl_info_str();
    call->add(DNNL_ARG_SRC, outer_x, forward.src_desc(), false);
    call->add(DNNL_ARG_WEIGHTS, outer_weight, forward.weights_desc(), false);
    call->add(DNNL_ARG_DST, outer_y, forward.dst_desc(), true);
    call->arguments.emplace(DNNL_ARG_BIAS, memory(bias, call->engine, buffers.bias));
  } else if (direction == ConvDirection::data_gradient) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        dnnl::convolution_backward_data::desc(algorithm, x, weight, y, stride, padding, padding), call->engine,
        forward);
    call->primitive = dnnl::convolution_backward_data(backward);
    implementation = backward.impl_info_str();
    call->add(DNNL_ARG_DIFF_SRC, outer_x, backward.diff_src_desc(), true);
    call->add(DNNL_ARG_WEIGHTS, outer_weight, backward.weights_desc(), false);
    call->add(DNNL_ARG_DIFF_DST, outer_y, backward.diff_dst_desc(), false);
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        dnnl::convolution_backward_weights::desc(algorithm, x, weight, y, stride, padding, padding), call->engine,
        forward);
    call->primitive = dnnl::convolution_backward_weights(backward);
    implementation = backward.impl_info_str();
    call->add(DNNL_ARG_SRC, outer_x, backward.src_desc(), false);
    call->add(DNNL_ARG_DIFF_WEIGHTS, outer_weight, backward.diff_weights_desc(), true);
    call->add(DNNL_ARG_DIFF_DST, outer_y, backward.diff_dst_desc(), false);
  }
  return {std::string(name) + " [" + implementation + "]", [call] { call->run(); }};
}

}  // namespace

Candidate blocked_candidate(ConvDirection direction, const ConvShape& shape, const ConvBuffers& buffers) {
  return make(direction, shape, buffers, memory::format_tag::any, "blocked");
}

Candidate row_major_candidate(ConvDirection direction, const ConvShape& shape, const ConvBuffers& buffers) {
  return make(direction, shape, buffers, memory::format_tag::nchw, "row-major");
}

}  // namespace castor::bench
