// Cross entropy of long rows of 16 bits on CUDA: a block of 1024 threads a multiprocessor, one row at a time. Memory
// binds it, so that it must never wait: every thread copies its own words of 16 bytes to shared memory, rows ahead of
// the one it works on. Between the two walks over a row its last words, 57344 logits in all, stay in registers, and
// those before, 40960 logits, in shared memory; earlier ones are copied once more, from the second-level cache, which
// still has them.
//
// Delicate: a thread reads from shared memory only what it has copied itself, so the copies need no barrier; threads
// meet once a row, and take turns with two sets of the numbers they leave there, because one may be a row ahead.
// Sums are f32 here, which 16-bit logits do not show; a row of -infinity only must not be subtracted from itself. What
// is not in the loops over a word's logits counts little.
#include <algorithm>

#include "core/ops/cross_entropy_cuda.cuh"

namespace castor::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32, kWidth = 8;
constexpr int kStep = kThreads * kWidth;  // logits in a word of every thread
constexpr int kHeld = 7, kKept = 5;       // words of a thread that wait in registers, and in shared memory
constexpr int kSlots = 8;                 // words of a thread on their way
constexpr int kSharedBytes = (kSlots + kKept) * kThreads * 16;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

/// What a warp's logits add to their row: what its exponentials are relative to, their sum, the sum of the logits.
struct Part {
  float shift, sum, total;
};

template <class T>
__device__ void store_shared(T* to, const Pack<T, kWidth>& word) {
  *reinterpret_cast<uint4*>(to) = std::bit_cast<uint4>(word);
}

/// The larger of each two numbers of 16 bits in a word. NaN is left out: it gets into the sum of exponentials.
template <class T>
__device__ std::uint32_t larger_pair(std::uint32_t a, std::uint32_t b) {
  std::uint32_t result;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
}
template <class T>
__device__ float largest_of(const Pack<T, kWidth>& word) {
  const auto pairs = std::bit_cast<Pack<std::uint32_t, kWidth / 2>>(word);
  const std::uint32_t pair =
      larger_pair<T>(larger_pair<T>(pairs.value[0], pairs.value[1]), larger_pair<T>(pairs.value[2], pairs.value[3]));
  const auto both = numbers(std::bit_cast<Pack<T, 2>>(pair));
  return fmaxf(both.value[0], both.value[1]);
}

/// The largest of a warp's numbers, in every lane: as integers of the same order, which the processor compares at once.
__device__ inline float largest_lane(float x) {
  const auto ordered = [](int bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); };
  return __int_as_float(ordered(__reduce_max_sync(0xFFFFFFFFu, ordered(__float_as_int(x)))));
}

__device__ inline float finite_or_zero(float max) { return max == kLowest ? 0.0f : max; }

template <class T, bool kSmooths>
__global__ void __launch_bounds__(kThreads, 1) long_rows(const __grid_constant__ CrossEntropyRows<T> args) {
  using Word = Pack<T, kWidth>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Part parts[2][kWarps];
  const int first = static_cast<int>(threadIdx.x) * kWidth, lane = static_cast<int>(threadIdx.x) % 32,
            warp = static_cast<int>(threadIdx.x) / 32;
  const int n = static_cast<int>(args.classes), words = (n + kStep - 1) / kStep;
  const int own_words = first + (words - 1) * kStep < n ? words : words - 1;  // of a row
  const int kept = min(max(words - kHeld, 0), kKept), again = max(words - kHeld - kKept, 0);
  const int copies = args.gradients != nullptr ? words + again : words;  // of a row
  const double factor = args.factor(), spread = args.smoothing / static_cast<double>(n) * factor;
  const float scale = static_cast<float>(factor), less = static_cast<float>(spread);

  // The words of all rows of this block in the order in which they are read, `kSlots` ahead: what takes a word's place
  // is the one `kSlots` later.
  T* const slots = reinterpret_cast<T*>(shared) + first;
  T* const kept_words = slots + kSlots * kStep;
  const T* row_start = args.logits + static_cast<std::int64_t>(blockIdx.x) * n + first;
  const T* source = row_start;
  std::int64_t copied_row = blockIdx.x;
  int copied = 0, bound = own_words, slot = 0;
  const auto copy_next = [&] {
    if (copied < bound) copy_ahead(slots + slot, source);
    end_copies();
    slot = slot == (kSlots - 1) * kStep ? 0 : slot + kStep;
    source += kStep;
    if (++copied == words || copied == copies) {
      if (copied == copies) {
        copied = 0;
        copied_row += gridDim.x;
        row_start += static_cast<std::int64_t>(gridDim.x) * n;
        bound = copied_row < args.rows ? own_words : 0;
      } else {
        bound = copied_row < args.rows ? copies : 0;
      }
      source = row_start;
    }
  };
  const auto take_next = [&] {
    wait_copies<kSlots - 1>();
    return pack_at<kWidth>(slots + slot);
  };
#pragma unroll 1
  for (int i = 0; i < kSlots; ++i) copy_next();

  int turn = 0;
  std::int64_t target = args.targets[blockIdx.x];
#pragma unroll 1
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const bool counts = args.counts(target);
    // Read long before they are needed.
    const float at_target = counts ? cuda::read(args.logits[row * n + target]) : 0.0f;
    const std::int64_t next_target = row + gridDim.x < args.rows ? args.targets[row + gridDim.x] : 0;
    float most = kLowest, sum = 0, total = 0;
    // Exponentials are relative to the largest logit so far.
    const auto add = [&](const Word& word) {
      const float largest = fmaxf(most, largest_of(word));
      const ShiftedExp<T> exp(finite_or_zero(largest));
      const auto x = numbers(word);
      float here = exp(x.value[0]);
      if constexpr (kSmooths) total += x.value[0];
#pragma unroll
      for (int e = 1; e < kWidth; ++e) {
        here += exp(x.value[e]);
        if constexpr (kSmooths) total += x.value[e];
      }
      sum = math::fma(sum, exp(most), here);
      most = largest;
    };
#pragma unroll 1
    for (int k = 0; k < again; ++k) {
      add(take_next());
      copy_next();
    }
#pragma unroll 1
    for (int k = 0; k < kept; ++k) {
      const Word word = take_next();
      store_shared(kept_words + k * kStep, word);
      add(word);
      copy_next();
    }
    Word held[kHeld];
    const int before = again + kept;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (before + k < words) {
        held[k] = take_next();
        if (before + k < own_words) add(held[k]);
        copy_next();
      }
    }
    const auto join = [&](Part part) {
      const float shift = largest_lane(part.shift);
      part.sum = join_lanes(part.sum * ShiftedExp<T>(finite_or_zero(shift))(part.shift), AddLanes{});
      if constexpr (kSmooths) part.total = join_lanes(part.total, AddLanes{});
      part.shift = shift;
      return part;
    };
    Part part = join({most, sum, total});
    if (lane == 0) parts[turn][warp] = part;
    __syncthreads();
    part = join(parts[turn][lane]);
    turn = 1 - turn;
    const float log_sum = logf(part.sum), logsumexp = part.shift + log_sum;
    if (threadIdx.x == 0) {
      args.losses[row] = counts ? args.loss(static_cast<double>(part.shift) + static_cast<double>(log_sum),
                                            static_cast<double>(at_target), static_cast<double>(part.total))
                                : args.uncounted(target);
    }

    if (args.gradients != nullptr) {
      T* const gradient = args.gradients + row * n + first;
      const ShiftedExp<T> exp(logsumexp);
      const auto for_own = [&](auto store_word) {
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          if (before + k < own_words) store_word(before + k, held[k]);
        }
#pragma unroll 1
        for (int k = 0; k < kept; ++k) store_word(again + k, pack_at<kWidth>(kept_words + k * kStep));
#pragma unroll 1
        for (int k = 0; k < again; ++k) {
          store_word(k, take_next());
          copy_next();
        }
      };
      if (counts) {
        for_own([&](int word, const Word& logits) {
          const auto x = numbers(logits);
          float values[kWidth];
#pragma unroll
          for (int e = 0; e < kWidth; ++e) values[e] = math::fma(exp(x.value[e]), scale, -less);
          store_pack(gradient + word * kStep, rounded<T, kWidth>(values));
        });
        const int at = static_cast<int>(target);
        if (static_cast<unsigned>(at % kStep - first) < static_cast<unsigned>(kWidth)) {  // it has just been written
          const float aim = static_cast<float>(1 - args.smoothing);
          gradient[at - first] = write<T>(math::fma(exp(at_target) - aim, scale, -less));
        }
      } else {
        Word same;
        for (T& value : same.value) value = write<T>(static_cast<float>(args.uncounted(target)));
        for_own([&](int word, const Word&) { store_pack(gradient + word * kStep, same); });
      }
    }
    target = next_target;
  }
}

template <class T>
bool launch(const Cuda& cuda, const CrossEntropyRows<T>& rows) {
  constexpr const char* kOp = CrossEntropyArgs::kName;
  constexpr int kOwnBytes = 1024;  // at most, beside those that are asked for
  int processors = 0, shared_bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda.device.index), kOp,
             cuda.device);
  if (shared_bytes < kSharedBytes + kOwnBytes) return false;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, cuda.device.index), kOp, cuda.device);
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(rows.rows, processors));
  const auto kernel = rows.smoothing > 0 ? long_rows<T, true> : long_rows<T, false>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), kOp, cuda.device);
  kernel<<<blocks, kThreads, kSharedBytes, stream_of(cuda)>>>(rows);
  check_cuda(cudaGetLastError(), kOp, cuda.device);
  return true;
}

}  // namespace

bool cross_entropy_long_rows(const Cuda& cuda, const CrossEntropyRows<BFloat16>& rows) { return launch(cuda, rows); }
bool cross_entropy_long_rows(const Cuda& cuda, const CrossEntropyRows<Half>& rows) { return launch(cuda, rows); }

}  // namespace castor::cuda
