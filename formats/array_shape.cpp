// Checked products. Delicate: zeros are left out of the product and applied at its end, so that no order of the sizes
// hides an overflow.
#include "formats/array_shape.h"

#include "core/base/error.h"

namespace castor::formats {

std::optional<std::uint64_t> bytes_of_shape(std::span<const std::int64_t> shape, DType dtype) {
  std::int64_t bytes = static_cast<std::int64_t>(dtype_size(dtype));
  bool empty = false;
  for (const std::int64_t size : shape) {
    if (size == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(bytes, size, &bytes)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : static_cast<std::uint64_t>(bytes);
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += cat(text.size() > 1 ? "," : "", size);
  return text + "]";
}

}  // namespace castor::formats
