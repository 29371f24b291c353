// The fake device's kernels: each checks its launch and runs the CPU's. One line an op, so an op that is missing here
// is the link error that a missing CUDA kernel would be; those that an optimizer's step consists of can be recorded.
#include "core/ops/activation.h"
#include "core/ops/adam8bit.h"
#include "core/ops/arithmetic.h"
#include "core/ops/attention.h"
#include "core/ops/attention_kernels.h"
#include "core/ops/came.h"
#include "core/ops/cast.h"
#include "core/ops/conv.h"
#include "core/ops/elementwise.h"
#include "core/ops/fp8.h"
#include "core/ops/fp8_matmul.h"
#include "core/ops/gated.h"
#include "core/ops/index.h"
#include "core/ops/matmul.h"
#include "core/ops/norm.h"
#include "core/ops/optim.h"
#include "core/ops/pointwise_steps.h"
#include "core/ops/pool.h"
#include "core/ops/random.h"
#include "core/ops/reduce.h"
#include "core/ops/rotary.h"
#include "core/ops/softmax.h"
#include "tests/support/fake_cuda/fake_launch.h"

namespace castor {

void run(const Cuda& cuda, const ActivationArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const BiasBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const AttentionArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const AttentionBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const CastArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const FillArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const ConvArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const ConvBackwardDataArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const ConvBackwardWeightArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const UnaryArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const UnaryBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const BinaryArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const CompareArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const WhereArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const IndexSelectArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const IndexAddArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const GatherArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const ScatterAddArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const Fp8ScaleArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const Fp8RoundArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const Fp8ExpandArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const Fp8MatmulArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const GatedArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const GatedBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const MatmulArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const LayerNormArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const LayerNormBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const BatchNormArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const BatchNormBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const GroupNormArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const GroupNormBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const BlockSquaresArgs& args) {
  launch_or_record(cuda, [pairs = std::vector(args.pairs.begin(), args.pairs.end())](const Cpu& cpu) {
    run(cpu, BlockSquaresArgs{pairs});
  });
}
void run(const Cuda& cuda, const FoldSegmentsArgs& args) {
  launch_or_record(cuda, [args](const Cpu& cpu) { run(cpu, args); });
}
void run(const Cuda& cuda, const NormLimitArgs& args) {
  launch_or_record(cuda, [args](const Cpu& cpu) { run(cpu, args); });
}
void run(const Cuda& cuda, const AdamArgs& args) {
  launch_or_record(
      cuda, [ranges = std::vector(args.ranges.begin(), args.ranges.end()), factor = args.factor](const Cpu& cpu) {
        run(cpu, AdamArgs{ranges, factor});
      });
}
void run(const Cuda& cuda, const SgdArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const LambSquaresArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const LambArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const FactoredSquaresArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const FactoredMomentsArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const AdafactorSquaresArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const AdafactorArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const CameResidualsArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const CameArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const Adam8bitArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const AdagradArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const LionArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const RmspropArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const PoolArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const PoolBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const RandomFillArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const DropoutArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const ReduceArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const ReduceBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const ArgmaxArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const RotaryArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const SoftmaxArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const SoftmaxBackwardArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const CrossEntropyArgs& args) { run(fake_launch(cuda), args); }
void run(const Cuda& cuda, const CrossEntropyScaleArgs& args) { run(fake_launch(cuda), args); }

std::string attention_library(const Cuda&) { return {}; }
Arithmetic arithmetic_of(const Cuda&) { return arithmetic_of(kCpu); }

std::size_t workspace_bytes(const Cuda&, const BiasBackwardArgs& args) { return workspace_bytes(Cpu{kCpu}, args); }
std::size_t workspace_bytes(const Cuda&, const AttentionArgs& args) { return workspace_bytes(Cpu{kCpu}, args); }
std::size_t workspace_bytes(const Cuda&, const AttentionBackwardArgs& args) { return workspace_bytes(Cpu{kCpu}, args); }
std::size_t workspace_bytes(const Cuda&, const ConvArgs& args) { return workspace_bytes(Cpu{kCpu}, args); }
std::size_t workspace_bytes(const Cuda&, const ConvBackwardDataArgs& args) { return workspace_bytes(Cpu{kCpu}, args); }
std::size_t workspace_bytes(const Cuda&, const ConvBackwardWeightArgs& args) {
  return workspace_bytes(Cpu{kCpu}, args);
}
std::size_t workspace_bytes(const Cuda&, const IndexAddArgs& args) { return workspace_bytes(Cpu{kCpu}, args); }
std::size_t workspace_bytes(const Cuda&, const Fp8MatmulArgs& args) { return workspace_bytes(Cpu{kCpu}, args); }
std::size_t workspace_bytes(const Cuda&, const MatmulArgs& args) { return workspace_bytes(Cpu{kCpu}, args); }

}  // namespace castor
