// The convolution primitives write nothing beyond what they are given, and what they give does not depend on what lay
// in their workspace: both once were false for a kernel of oneDNN's, and neighbours in memory changed now and then.
//
// Delicate: the caching allocator rounds sizes up, which hides writes behind a tensor; so plain memory with guards on
// both sides is used here.
#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/ops/onednn.h"

namespace {

using namespace castor;
using namespace castor::onednn;

/// Bytes between guards, filled with small numbers.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes) : bytes_(bytes), all_(bytes + 2 * kGuard + kAlignment, kMark) {
    const auto address = reinterpret_cast<std::uintptr_t>(all_.data() + kGuard);
    begin_ = kGuard + (kAlignment - address % kAlignment) % kAlignment;
    for (std::size_t i = 0; i < bytes_ / sizeof(float); ++i) {
      const float value = static_cast<float>(static_cast<int>(i * 7919 % 13) - 6) / 7;
      std::memcpy(all_.data() + begin_ + i * sizeof(float), &value, sizeof value);
    }
  }
  void* data() { return all_.data() + begin_; }
  std::string bytes() const { return std::string(all_.begin() + static_cast<std::ptrdiff_t>(begin_), end()); }
  void fill(char value) { std::memset(data(), value, bytes_); }
  /// True if nobody wrote into a guard.
  bool is_whole() const {
    const auto marks = [](auto from, auto to) {
      for (; from != to; ++from) {
        if (*from != kMark) return false;
      }
      return true;
    };
    return marks(all_.begin(), all_.begin() + static_cast<std::ptrdiff_t>(begin_)) && marks(end(), all_.end());
  }

 private:
  static constexpr std::size_t kGuard = 16384, kAlignment = 64;
  static constexpr char kMark = '\x5b';
  std::vector<char>::const_iterator end() const { return all_.begin() + static_cast<std::ptrdiff_t>(begin_ + bytes_); }

  std::size_t bytes_, begin_ = 0;
  std::vector<char> all_;
};

Conv& primitive(int direction, const ConvProblem& problem) {
  return direction == 0   ? conv_forward(problem)
         : direction == 1 ? conv_backward_data(problem)
                          : conv_backward_weights(problem);
}

/// What a run leaves, with a workspace full of `rubbish`.
std::string run(int direction, const ConvProblem& p, char rubbish) {
  const auto bytes = [](std::int64_t elements) { return static_cast<std::size_t>(elements) * sizeof(float); };
  Conv& conv = primitive(direction, p);
  Guarded x(bytes(p.batch * p.in_channels * p.in_height * p.in_width)),
      weight(bytes(p.in_channels * p.out_channels * p.kernel_height * p.kernel_width)),
      y(bytes(p.batch * p.out_channels * p.out_height * p.out_width)), workspace(conv.workspace_bytes());
  workspace.fill(rubbish);
  conv.run(x.data(), weight.data(), nullptr, y.data(), workspace.data());
  const std::string what(conv.implementation());
  CAPTURE(what);
  CHECK(x.is_whole());
  CHECK(weight.is_whole());
  CHECK(y.is_whole());
  CHECK(workspace.is_whole());
  return x.bytes() + weight.bytes() + y.bytes();
}

TEST_CASE("convolutions write nothing beyond their tensors and workspace, and read nothing that was in it") {
  for (const std::int64_t in : {1, 2, 3, 4, 7, 8, 12, 16}) {
    for (const std::int64_t out : {2, 8, 12}) {
      for (const std::int64_t kernel : {1, 3}) {
        for (const std::int64_t stride : {1, 2}) {
          for (const std::int64_t side : {1, 5, 8, 10, 14, 28}) {
            ConvProblem p;
            p.batch = 2;
            p.groups = 1;
            p.in_channels = in;
            p.out_channels = out;
            p.in_height = p.in_width = side;
            p.kernel_height = p.kernel_width = kernel;
            p.stride_height = p.stride_width = stride;
            p.padding_height = p.padding_width = kernel / 2;
            p.out_height = p.out_width = (side + 2 * (kernel / 2) - kernel) / stride + 1;
            for (int direction = 0; direction < 3; ++direction) {
              CAPTURE(in);
              CAPTURE(out);
              CAPTURE(kernel);
              CAPTURE(stride);
              CAPTURE(side);
              CAPTURE(direction);
              CHECK(run(direction, p, '\0') == run(direction, p, '\x7f'));
            }
          }
        }
      }
    }
  }
}

}  // namespace
