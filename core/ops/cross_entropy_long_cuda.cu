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
constexpr std::size_t kSharedBytes = (kSlots + kKept) * kThreads * 16;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

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

/// What logits add to their row: the largest, the sum of exponentials relative to it, and with `kSmooths` their own
/// sum.
template <class T, bool kSmooths>
struct Part {
  float largest = kLowest, sum = 0, total = 0;

  __device__ void add(const Pack<T, kWidth>& word) {
    const float now = fmaxf(largest, largest_of(word));
    const ShiftedExp<T> exp(finite_or_zero(now));
    const auto x = numbers(word);
    float here = exp(x.value[0]);
#pragma unroll
    for (int e = 1; e < kWidth; ++e) here += exp(x.value[e]);
    sum = math::fma(sum, exp(largest), here);
    largest = now;
    if constexpr (kSmooths) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) total += x.value[e];
    }
  }
  /// Of all lanes of a warp, in each of them.
  __device__ Part joined() const {
    Part all;
    all.largest = largest_lane(largest);
    all.sum = join_lanes(sum * ShiftedExp<T>(finite_or_zero(all.largest))(largest), AddLanes{});
    if constexpr (kSmooths) all.total = join_lanes(total, AddLanes{});
    return all;
  }
};

/// A thread's words of all rows of its block, in the order in which they are read, copied to shared memory `kSlots`
/// ahead: what takes a word's place is the one `kSlots` later.
///   of_row  how many words of a row are the thread's; `words` are those of all threads
///   again   how many of a row, its first, come once more behind its last
template <class T>
class WordsAhead {
 public:
  __device__ WordsAhead(T* slots, const CrossEntropyRows<T>& args, int first, int words, int of_row, int again)
      : slots_(slots),
        row_start_(args.logits + static_cast<std::int64_t>(blockIdx.x) * args.classes + first),
        source_(row_start_),
        rows_(args.rows),
        row_(blockIdx.x),
        pitch_(static_cast<std::int64_t>(gridDim.x) * args.classes),
        words_(words),
        of_row_(of_row),
        copies_(words + again),
        bound_(of_row) {
#pragma unroll 1
    for (int i = 0; i < kSlots; ++i) go_on();
  }

  __device__ Pack<T, kWidth> now() const {
    wait_copies<kSlots - 1>();
    return pack_at<kWidth>(slots_ + slot_);
  }
  /// To the next word; the one that was read before is given up.
  __device__ void go_on() {
    if (copied_ < bound_) copy_ahead(slots_ + slot_, source_);
    end_copies();
    slot_ = slot_ == (kSlots - 1) * kStep ? 0 : slot_ + kStep;
    source_ += kStep;
    if (++copied_ == words_ || copied_ == copies_) turn();
  }

 private:
  /// To a row's beginning, once more or to that of the block's next row.
  __device__ void turn() {
    int own = copies_;
    if (copied_ == copies_) {
      copied_ = 0;
      row_ += gridDim.x;
      row_start_ += pitch_;
      own = of_row_;
    }
    bound_ = row_ < rows_ ? own : 0;
    source_ = row_start_;
  }

  T* slots_;
  const T *row_start_, *source_;
  std::int64_t rows_, row_, pitch_;
  int words_, of_row_, copies_, bound_, copied_ = 0, slot_ = 0;
};

template <class T, bool kSmooths>
__global__ void __launch_bounds__(kThreads, 1) long_rows(const __grid_constant__ CrossEntropyRows<T> args) {
  using Word = Pack<T, kWidth>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Part<T, kSmooths> parts[2][kWarps];
  const int first = static_cast<int>(threadIdx.x) * kWidth, lane = static_cast<int>(threadIdx.x) % 32,
            warp = static_cast<int>(threadIdx.x) / 32;
  const int n = static_cast<int>(args.classes), words = (n + kStep - 1) / kStep;
  const int own_words = first + (words - 1) * kStep < n ? words : words - 1;
  const int kept = min(max(words - kHeld, 0), kKept), again = max(words - kHeld - kKept, 0), before = again + kept;
  const double factor = args.factor(), spread = args.smoothing / static_cast<double>(n) * factor;
  const float scale = static_cast<float>(factor), less = static_cast<float>(spread);
  T* const slots = reinterpret_cast<T*>(shared) + first;
  T* const kept_words = slots + kSlots * kStep;
  WordsAhead<T> ahead(slots, args, first, words, own_words, args.gradients != nullptr ? again : 0);

  int turn = 0;
  std::int64_t target = args.targets[blockIdx.x];
#pragma unroll 1
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const bool counts = args.counts(target);
    // Read long before they are needed.
    const float at_target = counts ? cuda::read(args.logits[row * n + target]) : 0.0f;
    const std::int64_t next_target = row + gridDim.x < args.rows ? args.targets[row + gridDim.x] : 0;
    Part<T, kSmooths> part;
#pragma unroll 1
    for (int k = 0; k < again; ++k) {
      part.add(ahead.now());
      ahead.go_on();
    }
#pragma unroll 1
    for (int k = 0; k < kept; ++k) {
      const Word word = ahead.now();
      store_shared(kept_words + k * kStep, word);
      part.add(word);
      ahead.go_on();
    }
    Word held[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (before + k < words) {
        held[k] = ahead.now();
        if (before + k < own_words) part.add(held[k]);
        ahead.go_on();
      }
    }
    part = part.joined();
    if (lane == 0) parts[turn][warp] = part;
    __syncthreads();
    part = parts[turn][lane].joined();
    turn = 1 - turn;
    const float log_sum = logf(part.sum), logsumexp = part.largest + log_sum;
    if (threadIdx.x == 0) {
      args.losses[row] = counts ? args.loss(static_cast<double>(part.largest) + static_cast<double>(log_sum),
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
          store_word(k, ahead.now());
          ahead.go_on();
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
  if (most_shared_bytes(kOp, cuda.device) < kSharedBytes) return false;
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, cuda.device.index), kOp, cuda.device);
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(rows.rows, processors));
  const auto kernel = rows.smoothing > 0 ? long_rows<T, true> : long_rows<T, false>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes)),
             kOp, cuda.device);
  kernel<<<blocks, kThreads, kSharedBytes, stream_of(cuda)>>>(rows);
  check_cuda(cudaGetLastError(), kOp, cuda.device);
  return true;
}

}  // namespace

bool cross_entropy_long_rows(const Cuda& cuda, const CrossEntropyRows<BFloat16>& rows) { return launch(cuda, rows); }
bool cross_entropy_long_rows(const Cuda& cuda, const CrossEntropyRows<Half>& rows) { return launch(cuda, rows); }

}  // namespace castor::cuda
