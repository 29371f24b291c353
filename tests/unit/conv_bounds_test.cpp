// oneDNN's convolutions write what they are given and nothing beside it, on the instruction set of this machine: a
// kernel that leaves its scratchpad changes other tensors, far from where it shows.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/ops/onednn.h"

namespace castor {
namespace {

constexpr std::byte kUntouched{0xAB};
constexpr std::size_t kGuard = 4096, kAlignment = 256;

/// Memory with a margin behind it.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes) : bytes_(bytes), all_(bytes + kGuard + kAlignment, kUntouched) {
    void* begin = all_.data();
    std::size_t room = all_.size();
    data_ = static_cast<std::byte*>(std::align(kAlignment, bytes + kGuard, begin, room));
    std::fill_n(data_, bytes_, std::byte{0});
  }
  void* data() { return data_; }
  bool is_intact() const {
    return std::all_of(data_ + bytes_, data_ + bytes_ + kGuard, [](std::byte each) { return each == kUntouched; });
  }

 private:
  std::size_t bytes_;
  std::vector<std::byte> all_;
  std::byte* data_ = nullptr;
};

TEST_CASE("convolutions of few channels, with and without strides, stay within their tensors and their workspace") {
  for (const std::int64_t in : {1, 2, 6, 8, 12}) {
    for (const std::int64_t side : {5, 10, 14}) {
      for (const std::int64_t kernel : {1, 3}) {
        for (const std::int64_t stride : {1, 2}) {
          onednn::ConvProblem p;
          p.batch = 2;
          p.in_channels = in;
          p.out_channels = 4;
          p.in_height = p.in_width = side;
          p.kernel_height = p.kernel_width = kernel;
          p.stride_height = p.stride_width = stride;
          p.padding_height = p.padding_width = kernel / 2;
          p.out_height = p.out_width = (side + kernel / 2 * 2 - kernel) / stride + 1;
          for (onednn::Conv* conv :
               {&onednn::conv_forward(p), &onednn::conv_backward_data(p), &onednn::conv_backward_weights(p)}) {
            const auto bytes = [](std::int64_t elements) { return static_cast<std::size_t>(elements) * sizeof(float); };
            Guarded x(bytes(p.batch * in * side * side)), weight(bytes(in * p.out_channels * kernel * kernel)),
                y(bytes(p.batch * p.out_channels * p.out_height * p.out_width)), workspace(conv->workspace_bytes());
            conv->run(x.data(), weight.data(), nullptr, y.data(), workspace.data());
            INFO(conv->implementation(), " in ", in, " side ", side, " kernel ", kernel, " stride ", stride);
            CHECK(x.is_intact());
            CHECK(weight.is_intact());
            CHECK(y.is_intact());
            CHECK(workspace.is_intact());
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace castor
