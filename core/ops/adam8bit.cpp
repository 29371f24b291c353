// Checks of AdamW with states in 8 bits.
#include "core/ops/adam8bit.h"

#include "core/ops/optim_checks.h"

namespace castor {

using namespace optim_checks;

namespace {

void check_codes(const char* name, const Tensor& codes, const Tensor& parameter) {
  constexpr const char* kOp = Adam8bitArgs::kName;
  check_defined(kOp, name, codes);
  check_flat(kOp, name, codes, parameter);
  if (codes.dtype() != DType::u8) throw DTypeError(cat(kOp, ": ", name, " must be u8, got ", codes));
}

void check_scales(const char* name, const Tensor& scales, const Tensor& parameter) {
  constexpr const char* kOp = Adam8bitArgs::kName;
  check_defined(kOp, name, scales);
  if (scales.dtype() != DType::f32) throw DTypeError(cat(kOp, ": ", name, " must be f32, got ", scales));
  if (scales.numel() != block_count(parameter.numel()) || !scales.is_contiguous()) {
    throw ShapeError(cat(kOp, ": ", name, " must have one number for each of ", block_count(parameter.numel()),
                         " blocks, row-major, got ", scales));
  }
}

}  // namespace

Cost cost(const Adam8bitArgs& args) {
  return {40.0 * static_cast<double>(args.parameter.numel()),
          streamed_bytes({&args.gradient, &args.copy}, {&args.parameter, &args.mean_codes, &args.square_codes,
                                                        &args.mean_scales, &args.square_scales})};
}

void adam8bit_step(const StepTensors& tensors, const Adam8bitStates& states, const AdamScalars& scalars) {
  constexpr const char* kOp = Adam8bitArgs::kName;
  check_tensors(kOp, tensors);
  check_codes("the mean's codes", states.mean_codes, tensors.parameter);
  check_codes("the squares' codes", states.square_codes, tensors.parameter);
  check_scales("the mean's scales", states.mean_scales, tensors.parameter);
  check_scales("the squares' scales", states.square_scales, tensors.parameter);
  if (tensors.parameter.numel() == 0) return;
  const Device device = common_device(kOp, {&tensors.parameter, &tensors.gradient, &tensors.copy, &states.mean_codes,
                                            &states.square_codes, &states.mean_scales, &states.square_scales});
  dispatch(device, Adam8bitArgs{tensors.parameter.view(), view_or_absent(tensors.gradient),
                                view_or_absent(tensors.copy), states.mean_codes.view(), states.square_codes.view(),
                                states.mean_scales.view(), states.square_scales.view(), scalars});
}

}  // namespace castor
