// Comm: what ranks say to each other. One interface over every transport (threads, shared memory, TCP, ...).
//
// A collective is a value (`Collective`), run at once on the calling thread or started and waited for later. Delicate:
// all ranks of a group must issue the same collectives in the same order. Each carries a sequence number and a
// fingerprint (operation, dtype, count, root, label) that is compared on every rank before a byte of data is used, so
// divergence is an error that names ranks, collective and tensor, never a hang or a wrong sum. After one error the
// whole job is failed: every later call on any group of it throws the same cause.
//
// Sums are added in order of ranks, never in order of arrival: the result is the same bits on all ranks, for every
// transport, size and timing.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor/tensor.h"

namespace castor::dist {

/// What ranks do together.
enum class CollectiveOp : std::uint8_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kAllToAll,
  kSend,
  kRecv,
  kBarrier
};

/// "all_reduce", "reduce_scatter", ...
std::string_view collective_name(CollectiveOp op);

/// How elements of several ranks become one. Small floats are combined in f32 and rounded once, f64 in f64, integers in
/// their own type (sums wrap); bool takes max and min only. kMean: the sum divided by the number of ranks before it is
/// rounded; of floats, all_reduce in the order of ranks and reduce_scatter without `accumulate`.
enum class ReduceOp : std::uint8_t { kSum, kMax, kMin, kMean };

/// In which order a sum's terms are added.
enum class SumOrder : std::uint8_t {
  kByRank,  ///< rank 0's, rank 1's, ...: the same bits for every transport, size and split
  kRing     ///< each part from another rank on, partial sums rounded to the dtype as they travel: all_reduce only; the
            ///< same bits on all ranks, but others than kByRank's, and others for another number of ranks
};

/// Bytes that a collective reads or writes: a contiguous tensor, or a view of host bytes that the caller keeps alive
/// until the collective is done. A tensor's storage is kept alive here; it must not be re-pointed meanwhile.
struct Buffer {
  Buffer(const View& bytes) : view(bytes) {}
  /// Throws ShapeError for an undefined tensor.
  Buffer(const Tensor& tensor);

  Device device() const { return owner == nullptr ? kCpu : owner->device(); }

  View view;
  std::shared_ptr<Storage> owner;  ///< null for a bare view
};

/// One collective. Build it with the functions below; `label` is a tensor's name or any text, the same on all ranks.
/// Where W pieces are asked for, one buffer whose first axis (or count) divides by W may be given instead.
struct Collective {
  CollectiveOp op = CollectiveOp::kBarrier;
  std::vector<Buffer> in;
  std::vector<Buffer> out;
  ReduceOp reduce = ReduceOp::kSum;
  bool accumulate = false;               ///< reduce_scatter: `out` is the first term of the sum
  SumOrder order = SumOrder::kByRank;    ///< all_reduce
  int root = -1;                         ///< broadcast: who has the data; send, recv: the other rank
  std::string label;                     ///< the tensor's name in errors and records
  std::chrono::milliseconds timeout{0};  ///< from the start of its run; 0: the group's

  /// Every rank's `x` becomes the combination of all.
  static Collective all_reduce(Buffer x, std::string label = {}, ReduceOp reduce = ReduceOp::kSum);
  /// `out` becomes the combination over ranks of their piece number `rank()`. Pieces may differ in size.
  ///   out         the dtype of `in`, or f32 where `in` is a small float: then nothing is rounded
  ///   accumulate  start from what `out` holds: out + in[rank 0] + in[rank 1] + ..., one by one
  static Collective reduce_scatter(std::vector<Buffer> in, Buffer out, std::string label = {},
                                   ReduceOp reduce = ReduceOp::kSum, bool accumulate = false);
  /// out[r] becomes rank r's `in`. Pieces may differ in size; `in` may be out[rank()] itself.
  static Collective all_gather(Buffer in, std::vector<Buffer> out, std::string label = {});
  /// Everyone's `x` becomes that of rank `root`.
  static Collective broadcast(Buffer x, int root, std::string label = {});
  /// out[r] becomes the piece in[rank()] of rank r. Any sizes, as long as both sides agree.
  static Collective all_to_all(std::vector<Buffer> in, std::vector<Buffer> out, std::string label = {});
  /// One rank's `x` goes to another. Done when the bytes are on their way.
  static Collective send(Buffer x, int to, std::string label = {});
  static Collective recv(Buffer x, int from, std::string label = {});
  /// Nobody leaves before all have come.
  static Collective barrier(std::string label = {});

  /// "all_reduce 'blocks.3.w' f32 x 1024", for errors and records.
  std::string describe() const;
  /// The element type, or u8 where there is no data.
  DType dtype() const;
  /// Where its first buffer is; the CPU where there is none.
  Device device() const;
  /// Elements on this rank, of all pieces together: the larger of both sides.
  std::int64_t count() const;
};

/// A started collective.
class Work {
 public:
  /// What a transport knows of it.
  class State {
   public:
    virtual ~State() = default;
    virtual bool done() const = 0;
    virtual void wait(std::optional<std::chrono::milliseconds> limit) = 0;
  };
  /// Null: it is done.
  explicit Work(std::shared_ptr<State> state) : state_(std::move(state)) {}

  /// True once it has ended, well or badly.
  bool done() const { return state_ == nullptr || state_->done(); }
  /// Waits until it is done and throws what it failed with: CommError, CommTimeout. For tensors on a GPU it is the
  /// device's queue that waits, not the caller: what is launched from now on finds the result.
  void wait() const {
    if (state_ != nullptr) state_->wait({});
  }
  /// The same for at most `limit`. Throws CommTimeout if it is not done by then; it goes on meanwhile.
  void wait(std::chrono::milliseconds limit) const {
    if (state_ != nullptr) state_->wait(limit);
  }

 private:
  std::shared_ptr<State> state_;
};

/// A group of ranks. Members may be called from any thread; collectives run in the order of the calls, one at a time
/// per group, and different groups run independently.
class Comm {
 public:
  Comm() = default;
  Comm(const Comm&) = delete;
  Comm& operator=(const Comm&) = delete;
  virtual ~Comm() = default;

  /// This process's number in the group, from 0.
  virtual int rank() const = 0;
  /// Members of the group.
  virtual int world_size() const = 0;
  /// "world", or "world/3:1" for color 1 of a split; the same on all members.
  virtual const std::string& name() const = 0;
  /// The job's rank of each member.
  virtual const std::vector<int>& members() const = 0;

  /// Starts a collective on the group's own thread.
  /// Throws ShapeError, DTypeError or DeviceError for buffers that do not fit it, before anything is sent.
  [[nodiscard]] Work start(Collective collective);
  /// Runs it on the calling thread, after those that were started before.
  /// Throws as `start`; CommError when a rank died or called something else; CommTimeout when one came too late.
  void run(Collective collective);

  // The common cases in short: each is run(Collective::...).
  void all_reduce(Buffer x, std::string label = {}, ReduceOp reduce = ReduceOp::kSum);
  void reduce_scatter(Buffer in, Buffer out, std::string label = {}, ReduceOp reduce = ReduceOp::kSum);
  void all_gather(Buffer in, Buffer out, std::string label = {});
  void broadcast(Buffer x, int root, std::string label = {});
  void all_to_all(Buffer in, Buffer out, std::string label = {});
  void send(Buffer x, int to, std::string label = {});
  void recv(Buffer x, int from, std::string label = {});
  void barrier(std::string label = {});

  /// Makes groups of the ranks that give the same color, ordered by (key, rank). Collective over this group.
  /// A negative color joins none and gets null.
  virtual std::unique_ptr<Comm> split(int color, int key) = 0;

  /// Fails the whole job: every wait of every rank ends with CommError naming this rank and the reason. Never throws.
  virtual void abort(const std::string& reason) noexcept = 0;

 protected:
  /// Whether its members can exchange tensors on this device; a collective's are all on one.
  virtual bool takes(Device device) const { return device.is_cpu(); }
  /// Runs or queues a collective that fits this group.
  virtual Work submit(Collective collective) = 0;
  virtual void execute(Collective collective) = 0;

 private:
  void prepare(Collective& collective) const;
};

}  // namespace castor::dist
