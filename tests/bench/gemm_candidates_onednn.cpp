// oneDNN's candidates. Delicate: copies of weights to and from a packed layout are part of the time, as a training step
// has new weights every time.
#include <dnnl.hpp>
#include <memory>

#include "tests/bench/gemm_candidates.h"

namespace castor::bench {
namespace {

using dnnl::memory;

/// What an inner product needs at run time: the primitive, its arguments, and copies before and after it.
struct Call {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::primitive primitive;
  std::unordered_map<int, memory> arguments;
  memory plain, packed;
  dnnl::reorder copy;
  bool packs = false, unpacks = false;
};

}  // namespace

Candidate inner_product_candidate(LinearForm form, const LinearBuffers& b, bool packed) {
  auto call = std::make_shared<Call>();
  const auto type = memory::data_type::f32;
  const memory::desc x({b.m, b.k}, type, memory::format_tag::ab), y({b.m, b.n}, type, memory::format_tag::ab);
  const memory::desc plain({b.n, b.k}, type, memory::format_tag::ab), any({b.n, b.k}, type, memory::format_tag::any);
  const memory::desc& weight = packed ? any : plain;
  const memory x_memory(x, call->engine, b.x), y_memory(y, call->engine, b.y);
  call->plain = memory(plain, call->engine, b.weight);
  const dnnl::inner_product_forward::primitive_desc forward(
      dnnl::inner_product_forward::desc(dnnl::prop_kind::forward_training, x, weight, y), call->engine);
  memory::desc chosen;
  std::string implementation;
  if (form == LinearForm::forward) {
    call->primitive = dnnl::inner_product_forward(forward);
    chosen = forward.weights_desc();
    implementation = forward.impl_info_str();
    call->arguments = {{DNNL_ARG_SRC, x_memory}, {DNNL_ARG_DST, y_memory}};
  } else if (form == LinearForm::data_gradient) {
    const dnnl::inner_product_backward_data::primitive_desc description(
        dnnl::inner_product_backward_data::desc(x, weight, y), call->engine, forward);
    call->primitive = dnnl::inner_product_backward_data(description);
    chosen = description.weights_desc();
    implementation = description.impl_info_str();
    call->arguments = {{DNNL_ARG_DIFF_DST, y_memory}, {DNNL_ARG_DIFF_SRC, x_memory}};
  } else {
    const dnnl::inner_product_backward_weights::primitive_desc description(
        dnnl::inner_product_backward_weights::desc(x, weight, y), call->engine, forward);
    call->primitive = dnnl::inner_product_backward_weights(description);
    chosen = description.diff_weights_desc();
    implementation = description.impl_info_str();
    call->arguments = {{DNNL_ARG_DIFF_DST, y_memory}, {DNNL_ARG_SRC, x_memory}};
  }
  const bool is_gradient = form == LinearForm::weight_gradient;
  call->packed = call->plain;
  if (chosen != plain) {
    call->packed = memory(chosen, call->engine);
    call->packs = !is_gradient;
    call->unpacks = is_gradient;
    call->copy = is_gradient ? dnnl::reorder(call->packed, call->plain) : dnnl::reorder(call->plain, call->packed);
  }
  call->arguments.emplace(is_gradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, call->packed);
  return {std::string("inner product") + (packed ? ", packed" : "") + " [" + implementation + "]", [call] {
            if (call->packs) call->copy.execute(call->stream, call->plain, call->packed);
            call->primitive.execute(call->stream, call->arguments);
            if (call->unpacks) call->copy.execute(call->stream, call->packed, call->plain);
          }};
}

Candidate sgemm_candidate(LinearForm form, const LinearBuffers& b) {
  switch (form) {
    case LinearForm::forward:
      return {"dnnl_sgemm", [b] { dnnl_sgemm('N', 'T', b.m, b.n, b.k, 1, b.x, b.k, b.weight, b.k, 0, b.y, b.n); }};
    case LinearForm::data_gradient:
      return {"dnnl_sgemm", [b] { dnnl_sgemm('N', 'N', b.m, b.k, b.n, 1, b.y, b.n, b.weight, b.k, 0, b.x, b.k); }};
    case LinearForm::weight_gradient:
      break;
  }
  return {"dnnl_sgemm", [b] { dnnl_sgemm('T', 'N', b.n, b.k, b.m, 1, b.y, b.n, b.x, b.k, 0, b.weight, b.k); }};
}

}  // namespace castor::bench
