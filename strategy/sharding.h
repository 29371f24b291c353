// What a plugin makes of a model's parameters: which parts of them this rank steps, how the gradients of all ranks
// become those parts', and how stepped weights come back to everyone who computes with them.
//
// Delicate: contributions are added one by one in the order of the global micro-batches (micro-step m, then rank r), in
// f32; the sum is divided once and rounded once to the gradient's dtype. So a window's gradient has the same bits
// however its micro-batches were split over ranks and micro-steps (1 x 4, 2 x 2, 4 x 1), and whoever steps it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "autograd/graph.h"
#include "autograd/optim/stepper.h"
#include "dist/chunk/chunk_manager.h"
#include "dist/chunk/disk_tier.h"

namespace castor::strategy {

/// What a step on meta showed: enough to place weights and states before the first real step.
struct StepForecast {
  std::vector<std::size_t> accesses;   ///< chunks in the order in which a micro-step touches them
  std::int64_t gathered_bytes = 0;     ///< of whole chunks where none is kept
  std::int64_t beside_bytes = 0;       ///< of the device, at most, that are neither weights nor optimizer states
  double state_bytes_per_element = 0;  ///< of masters and optimizer states
};

/// Memory that a rank may use, where it is not what the machine has.
struct MemoryLimits {
  std::optional<std::int64_t> device_bytes, host_bytes;
};

/// Receives the gradients of each backward. All ranks make the same calls in the same order; each may throw CommError.
class Sharding : public autograd::GradientSink {
 public:
  /// What this rank steps, without gradients: whole parameters or stretches, in a fixed order.
  virtual std::vector<autograd::Part> parts() const = 0;
  /// Completes sums over parts of other ranks; null where this rank's parts are everything.
  virtual autograd::StatsReducer* reducer() { return nullptr; }

  /// False: parts of 16 bits are stepped without f32 masters.
  virtual bool keeps_masters() const { return true; }
  /// The parameters whose weights are saved in pieces, by every rank its own; none: this rank has everything.
  virtual std::vector<autograd::Variable> sharded() const { return {}; }
  bool is_sharded() const { return !sharded().empty(); }
  /// This rank's pieces of them, with what the last step left of them done.
  virtual std::vector<autograd::Part> pieces() const { return {}; }
  /// False: a parameter's data is gathered when it is used, and weights are loaded into pieces().
  virtual bool has_whole_weights() const { return true; }
  /// True: finish_window puts gradients where weights were, so a step that is skipped must restore them.
  virtual bool overwrites_weights() const { return false; }
  /// Who is told before bytes of pieces() change other than by a step.
  virtual void set_before_change(std::function<void(const Tensor&)>) {}

  /// Who finishes parts [first, first + count) of parts(), which a step may have left; see can_finish_late.
  using FinishParts = std::function<void(std::size_t first, std::size_t count)>;
  /// True: it calls the one who finishes parts before it reads or overwrites their weights.
  virtual bool can_finish_late() const { return false; }
  virtual void set_finish_parts(FinishParts) {}

  /// True: another rank has the same pieces and saves them.
  virtual bool is_replica() const { return false; }
  /// After a step on meta: what it showed; none where nothing is placed by it.
  virtual std::optional<StepForecast> forecast() const { return {}; }
  /// The host's tier, where there is one beside the device.
  virtual std::optional<Device> host() const { return {}; }
  /// Bytes in scratch files.
  virtual std::int64_t disk_bytes() const { return 0; }
  /// What moved between pieces and whole chunks; null where there are none.
  virtual const dist::ChunkTraffic* chunk_traffic() const { return nullptr; }
  /// What was read from and written to scratch files so far.
  virtual dist::DiskTraffic disk_traffic() const { return {}; }

  /// Whether passes may be recorded (recorded_step.h): weights stay where they are, deliver() only computes, and
  /// begin_pass, begin_micro_step and end_micro_step do nothing.
  virtual bool can_record() const { return false; }
  /// Whether it has a place for gradients that wait on their rank.
  virtual bool can_defer() const { return false; }
  /// True: contributions of the micro-steps from now on wait on this rank, as one sum, for the first one that does not.
  /// Only where can_defer().
  virtual void set_deferred(bool /*is_deferred*/) {}
  /// Before a forward pass.
  virtual void begin_pass(bool /*is_training*/) {}
  /// Before a micro-step's backward.
  ///   position  of the micro-step in its accumulation window, from 0
  virtual void begin_micro_step(std::int64_t position) = 0;
  /// After it: every parameter's contribution is added. A parameter that got no gradient counts as zero.
  virtual void end_micro_step() = 0;
  /// At the window's end: each part's gradient becomes the sum divided by `micro_batches` (of all ranks together).
  ///   parts  as parts() gave them
  virtual void finish_window(std::int64_t micro_batches, std::vector<autograd::Part>& parts) = 0;
  /// After the parts were stepped: every rank sees the new weights.
  virtual void publish_weights() {}
  /// After weights were loaded into pieces() or into the parameters.
  virtual void weights_loaded() {}
};

/// No sharding: one process, whole parameters. Parameters must outlive it.
std::unique_ptr<Sharding> make_unsharded(std::vector<autograd::Variable> parameters);

}  // namespace castor::strategy
