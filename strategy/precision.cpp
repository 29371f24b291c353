// Names and dtypes of precisions.
#include "strategy/precision.h"

#include "core/base/error.h"

namespace castor::strategy {

std::string_view precision_name(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return "fp32";
    case Precision::fp16:
      return "fp16";
    case Precision::bf16:
      return "bf16";
  }
  throw InternalError("precision_name: unknown precision");
}

Precision precision_of(const std::string& name, const std::string& path) {
  for (const Precision precision : {Precision::fp32, Precision::fp16, Precision::bf16}) {
    if (name == precision_name(precision)) return precision;
  }
  throw ConfigError(cat(path, ": expected fp32, fp16 or bf16, got '", name, "'"), path);
}

DType compute_dtype(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return DType::f32;
    case Precision::fp16:
      return DType::f16;
    case Precision::bf16:
      return DType::bf16;
  }
  throw InternalError("compute_dtype: unknown precision");
}

}  // namespace castor::strategy
