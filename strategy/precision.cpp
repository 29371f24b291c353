// Names and dtypes of precisions.
#include "strategy/precision.h"

#include "core/base/error.h"

namespace castor::strategy {
namespace {

constexpr Precision kPrecisions[] = {Precision::fp32, Precision::fp16, Precision::bf16, Precision::fp8,
                                     Precision::fp16_apex};

}  // namespace

std::string_view precision_name(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return "fp32";
    case Precision::fp16:
      return "fp16";
    case Precision::bf16:
      return "bf16";
    case Precision::fp8:
      return "fp8";
    case Precision::fp16_apex:
      return "fp16_apex";
  }
  throw InternalError("precision_name: unknown precision");
}

Precision precision_of(const std::string& name, const std::string& path) {
  std::string known;
  for (const Precision precision : kPrecisions) {
    if (name == precision_name(precision)) return precision;
    known += cat(known.empty() ? "" : ", ", precision_name(precision));
  }
  throw ConfigError(cat(path, ": expected one of ", known, "; got '", name, "'"), path);
}

Precision plugin_precision(const std::string& name, bool use_fp8) {
  const Precision precision = precision_of(name, "strategy.plugin.precision");
  if (!use_fp8 || precision == Precision::fp8) return precision;
  if (precision == Precision::bf16) return Precision::fp8;
  throw ConfigError(cat("strategy.plugin.use_fp8: 8-bit products go with precision: bf16, got ", name),
                    "strategy.plugin.use_fp8");
}

DType compute_dtype(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return DType::f32;
    case Precision::fp16:
    case Precision::fp16_apex:
      return DType::f16;
    case Precision::bf16:
    case Precision::fp8:
      return DType::bf16;
  }
  throw InternalError("compute_dtype: unknown precision");
}

bool scales_losses(Precision precision) { return precision == Precision::fp16 || precision == Precision::fp16_apex; }

autograd::TensorOptions tensor_options(const MixedPrecision& precision, Device device) {
  autograd::TensorOptions options{compute_dtype(precision.type), device};
  options.has_fp8_products = precision.type == Precision::fp8;
  if (precision.type == Precision::fp16_apex && precision.keep_batchnorm_fp32) options.batch_norm_dtype = DType::f32;
  return options;
}

}  // namespace castor::strategy
