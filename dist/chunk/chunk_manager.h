// ChunkManager: a model's weights in flat chunks of which every rank keeps a piece. A chunk is gathered when a kernel
// asks for an address in it, and dropped when whoever places chunks says so; gradients take the weights' place, and
// their sum goes back to the pieces.
//
// Source: Fang et al. 2022, arXiv:2108.05818 (chunks); Rajbhandari et al. 2020, arXiv:1910.02054, section 5.3.
// Mechanism only: which chunks stay, move or come early is decided by a ChunkPolicy. Delicate:
//  * There are no hooks in modules. A chunk's storage has a pager (core/tensor/storage.h), so any code that touches a
//    parameter finds it: forward, backward, recomputation, validation, a user's own op.
//  * A chunk that the running op has touched must stay until the op is done; ops are counted by dispatch. The manager's
//    own are left out: a rank whose piece is empty runs fewer, and all ranks must drop alike.
//  * All ranks touch the same chunks in the same order within a micro-step; divergence is the CommError of the gather.
//  * Once a gradient lies in a chunk it cannot be dropped before it was reduced: its other parameters are still used by
//    backward, this one's last use has passed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/graph.h"
#include "autograd/optim/stepper.h"
#include "dist/chunk/disk_tier.h"
#include "dist/comm.h"
#include "dist/flat_layout.h"
#include "dist/part_sums.h"

namespace castor::dist {

/// What a chunk's whole array holds.
enum class ChunkState : std::uint8_t {
  kAway,        ///< nothing: only pieces exist
  kArriving,    ///< is being gathered ahead of its use
  kGathered,    ///< the weights; may be dropped between ops
  kCollecting,  ///< weights and some gradients of this micro-step
  kReducing,    ///< gradients, on their way to the pieces' owners
};
/// "away", "arriving", ...
std::string_view chunk_state_name(ChunkState state);

/// Decides where chunks are. Called with the chunk's number.
class ChunkPolicy {
 public:
  virtual ~ChunkPolicy() = default;
  /// `chunk` is needed now: drop others to make room.
  virtual void before_gather(std::size_t chunk) = 0;
  /// It is there; others may be fetched ahead.
  virtual void after_access(std::size_t chunk) = 0;
};

/// What is known of a chunk when places are chosen.
struct ChunkInfo {
  std::int64_t bytes = 0;     ///< of the whole chunk
  std::int64_t elements = 0;  ///< of the same
  bool is_trained = false;
};

/// Where a rank's share of a chunk lives.
struct ChunkHome {
  Device piece;                 ///< its weights
  Device states;                ///< its optimizer states; they are stepped there
  bool piece_on_disk = false;   ///< the weights come to `piece` only when they are used
  bool states_on_disk = false;  ///< the states likewise
};

struct ChunkOptions {
  std::int64_t capacity = 0;    ///< elements of a chunk
  bool accumulates = false;     ///< windows of several micro-steps: an f32 sum of each piece is kept between them
  bool overlaps_reduce = true;  ///< gradients are reduced while backward goes on
  int replicas = 1;             ///< ranks that own the same piece: chunks are cut for world size / replicas
  bool keeps_masters = true;    ///< 16-bit pieces have f32 masters, so a gradient may take the piece's place
  /// Where what belongs to chunks lives, told their bytes and which are trained; empty: all of it where it is used.
  std::function<std::vector<ChunkHome>(std::span<const ChunkInfo> chunks)> homes = {};
  /// Where what is on disk lives; its host and texts are the manager's business.
  DiskOptions disk = {};
  const char* owner = "ChunkManager";  ///< whom errors name
};

/// What moved, since the start.
struct ChunkTraffic {
  std::int64_t gathers = 0;     ///< chunks gathered
  std::int64_t prefetched = 0;  ///< of these, ahead of their use
  std::int64_t waits = 0;       ///< uses that had to wait for their chunk
  std::int64_t reductions = 0;
  std::int64_t peak_gathered_bytes = 0;  ///< most bytes of whole chunks at a time
};

class ChunkManager final : public autograd::GradientSink {
 public:
  /// Fills the values of a parameter; see autograd::initializers.
  using Fill = std::function<void(const autograd::Variable& parameter, const Tensor& into)>;

  /// On every rank with the same parameters in the order in which forward uses them; may be on meta. Group and
  /// parameters must outlive it. From now on the parameters' data lie in chunks on `device`.
  ///   fill  called for each parameter once, with room for all of it; no more than one chunk has memory at a time
  /// Throws DTypeError for parameters that are not f32, bf16 or f16.
  ChunkManager(Comm& comm, const std::vector<autograd::Variable>& parameters, Device device,
               const ChunkOptions& options, const Fill& fill);
  ~ChunkManager() override;
  ChunkManager(const ChunkManager&) = delete;
  ChunkManager& operator=(const ChunkManager&) = delete;

  /// Who places chunks; must outlive this. Needed before the first use.
  void set_policy(ChunkPolicy& policy) { policy_ = &policy; }
  /// Called before bytes of a piece change other than by an optimizer's step.
  void set_before_change(std::function<void(const Tensor&)> before_change) {
    before_change_ = std::move(before_change);
  }

  /// Called before a piece's weights are read or overwritten: parts [first, first + count) of parts() may have been
  /// left by the last step.
  void set_finish_parts(std::function<void(std::size_t first, std::size_t count)> finish_parts) {
    finish_parts_ = std::move(finish_parts);
  }

  // What policies see and do.
  std::size_t chunk_count() const { return chunks_.size(); }
  ChunkState state(std::size_t chunk) const;
  bool is_trained(std::size_t chunk) const;
  /// Bytes of the whole chunk.
  std::int64_t bytes(std::size_t chunk) const;
  /// Bytes of all chunks whose whole array has memory now.
  std::int64_t gathered_bytes() const { return gathered_bytes_; }
  /// True if it may be dropped now: gathered, without gradients, and not in use by the running op.
  bool can_release(std::size_t chunk) const;
  /// Drops it. Throws InternalError unless can_release.
  void release(std::size_t chunk);
  /// Starts gathering it; a no-op unless it is away.
  void prefetch(std::size_t chunk);
  /// How many accesses from now it was used in the micro-step before; the number of all accesses if it was not, or if
  /// nothing is known yet.
  std::int64_t next_use(std::size_t chunk) const;
  /// The chunk that comes `ahead` accesses after the current one, if that is known.
  std::optional<std::size_t> upcoming(std::int64_t ahead) const;
  /// The number of the access at which it was used last.
  std::int64_t last_use(std::size_t chunk) const;
  const ChunkTraffic& traffic() const { return traffic_; }
  /// The disk's share of the states and of the pieces; null where all of them are in memory.
  DiskTier* states_disk() const { return states_disk_.get(); }
  DiskTier* pieces_disk() const { return pieces_disk_.get(); }

  /// The chunks in the order in which the last micro-step touched them, and what to expect before there was one.
  const std::vector<std::size_t>& accesses() const { return known_; }
  void expect(std::vector<std::size_t> accesses) { known_ = std::move(accesses); }

  // A step.
  /// Before a forward pass: accesses are counted from here.
  ///   is_training  it will be followed by backward: the order of the last such pass is what to expect
  void begin_pass(bool is_training);
  void begin_micro_step(std::int64_t position);
  void deliver(const autograd::Variable& leaf, Tensor gradient) override;
  /// In the leaf's chunk, where its weights are until the gradient is computed.
  Tensor place_of(const autograd::Variable& leaf) override;
  /// All gradients of the micro-step are added to the pieces' sums when it returns.
  void end_micro_step();
  /// Gives each part its gradient: the sum divided by `micro_batches`, rounded to the weights' dtype.
  void finish_window(std::int64_t micro_batches, std::vector<autograd::Part>& parts);
  /// The pieces changed: whole chunks of trained parameters are dropped.
  void publish();
  /// The same for all chunks, after weights were loaded.
  void drop_all();

  /// This rank's stretches of trained parameters.
  std::vector<autograd::Part> parts() const;
  /// For statistics of trained parameters.
  autograd::StatsReducer& sums() { return *sums_; }
  /// This rank's stretches of all parameters, frozen ones too, with what the last step left of them done.
  std::vector<autograd::Part> pieces() const;
  const std::vector<autograd::Variable>& parameters() const { return parameters_; }

 private:
  struct Chunk;
  class Moving;

  void make_pieces();
  std::uint64_t ops() const;
  void touch(Chunk& chunk);
  void note_access(Chunk& chunk);
  void gather(Chunk& chunk);
  void begin_gather(Chunk& chunk);
  void give_memory(Chunk& chunk);
  void drop(Chunk& chunk, const char* reason);
  void start_reduce(Chunk& chunk);
  void finish_reduce(Chunk& chunk);
  void finish_oldest_reduce();
  bool takes_piece(const Chunk& chunk) const;
  void prepare_piece(const Chunk& chunk) const;
  void make_gradient(Chunk& chunk, std::int64_t micro_batches);
  void finish_parts(const Chunk& chunk) const;
  std::vector<std::vector<OwnedStretch>> owned_stretches() const;

  int shard() const { return comm_.rank() % shards_; }
  std::int64_t piece_begin(const Chunk& chunk) const;

  Comm& comm_;
  int shards_;                          // pieces of a chunk
  std::unique_ptr<Comm> owners_;        // ranks that have every piece once
  std::unique_ptr<Comm> gather_group_;  // the same; gathers and reductions do not wait for each other
  std::unique_ptr<Comm> reduce_group_;
  Device device_;
  ChunkOptions options_;
  std::vector<autograd::Variable> parameters_;
  std::unique_ptr<DiskTier> states_disk_, pieces_disk_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::map<autograd::VariableState*, std::pair<std::size_t, std::size_t>> place_;  // chunk and slot
  std::unique_ptr<PartSums> sums_;
  ChunkPolicy* policy_ = nullptr;
  std::function<void(const Tensor&)> before_change_;
  std::function<void(std::size_t, std::size_t)> finish_parts_;
  std::int64_t gathered_bytes_ = 0;
  ChunkTraffic traffic_;
  bool is_moving_ = false;         // the manager itself takes addresses
  std::uint64_t own_ops_ = 0;      // that the manager ran
  std::uint64_t ops_at_move_ = 0;  // ops() when it began to move
  std::int64_t position_ = 0;
  bool is_training_ = false;
  std::vector<std::size_t> accesses_;  // of this micro-step
  std::vector<std::size_t> known_;     // of the one before
  std::int64_t access_number_ = 0;     // since the start
  std::vector<std::size_t> reducing_;  // oldest first
};

}  // namespace castor::dist
