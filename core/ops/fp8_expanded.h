// The product of two 8-bit tensors as one of expanded operands, on any device: they lie in the scratch, one after the
// other, before the scratch of the product itself.
#pragma once

#include <utility>

#include "core/ops/fp8_matmul.h"
#include "core/ops/matmul.h"

namespace castor {

template <class Target>
class Fp8Expanded {
 public:
  Fp8Expanded(const Target& target, const Fp8MatmulArgs& args) : target_(target), args_(args) {
    product_.bias = args.bias;
    product_.c = args.c;
    lay_out(args.a, product_.a);
    lay_out(args.b, product_.b);
    std::swap(product_.b.size[0], product_.b.size[1]);
    std::swap(product_.b.stride[0], product_.b.stride[1]);
    total_ = operands_ + workspace_bytes(target, product_);
  }

  std::size_t bytes() const { return total_; }

  void run_in_scratch() {
    char* const scratch = args_.workspace.as<char>();
    product_.a.data = scratch;
    product_.b.data = scratch + b_offset_;
    product_.workspace = args_.workspace;
    product_.workspace.data = scratch + operands_;
    expand(args_.a, args_.a_scale, product_.a.data);
    expand(args_.b, args_.b_scale, product_.b.data);
    run(target_, product_);
  }

 private:
  void lay_out(const View& from, View& to) {
    constexpr std::size_t kAlignment = 256;
    to = from;
    to.dtype = args_.c.dtype;
    b_offset_ = operands_;
    operands_ += (to.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  }

  /// The whole operand as one row, in its order in memory.
  void expand(const View& from, const View& scale, void* to) {
    View flat = from;
    flat.ndim = 1;
    flat.size[0] = from.numel();
    flat.stride[0] = 1;
    View result = flat;
    result.data = to;
    result.dtype = args_.c.dtype;
    run(target_, Fp8ExpandArgs{flat, scale, result});
  }

  const Target& target_;
  const Fp8MatmulArgs& args_;
  MatmulArgs product_;
  std::size_t operands_ = 0, b_offset_ = 0, total_ = 0;
};

}  // namespace castor
