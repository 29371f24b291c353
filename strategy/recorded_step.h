// `compile: true`: a micro-step's forward and backward passes, recorded once for each shape of batch and then run as
// one piece of work, so that the host starts one thing where it started hundreds. Small models are bound by that.
//
// The first pass of a shape runs op by op, the second is recorded and run, the later ones are runs. A run must find
// everything where the recording left it: inputs are copied to the tensors that were recorded, activations have memory
// of their own, gradients lie where the first run put them, and random numbers come from keys in the device's memory.
// What passes do on the host is done again for each run: gradients become the parameters', batch statistics are handed
// on, the window counts. So runs have the bits of passes that go op by op.
// Delicate: later micro-steps of a window add to the sums of the earlier ones, so the first, the second and all later
// ones have recordings of their own. A recording whose weights have moved is made again.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "autograd/nn/buffer_update.h"
#include "autograd/random_state.h"
#include "core/device/backend.h"
#include "core/ops/recorded_keys.h"
#include "strategy/boosted_model.h"

namespace castor::strategy {

class RecordedStep {
 public:
  /// Values by name, on the model's device.
  using Values = std::map<std::string, Tensor>;
  /// Forward and backward of the micro-step that comes next, of a batch on the model's device.
  using Pass = std::function<Values(const autograd::Batch& batch)>;

  /// `model` was boosted with an optimizer and outlives this.
  explicit RecordedStep(BoostedModel& model);
  ~RecordedStep();

  /// Does what `pass` does with the batch, which may lie on the host. Throws what the pass throws, and DeviceError for
  /// one that cannot be recorded: one whose host waits for the device.
  Values run(const autograd::Batch& batch, const Pass& pass);

 private:
  struct Made;
  /// Position in the window (2: any later one), then shapes and dtypes of the batch.
  using Key = std::pair<std::int64_t, std::string>;

  Values record(Made& made, const Pass& pass);
  Values repeat(Made& made);
  void hand_on_updates(const Made& made);
  std::vector<const void*> addresses() const;

  BoostedModel& model_;
  std::map<Key, std::unique_ptr<Made>> made_;  // null: one pass of this kind has run op by op
};

}  // namespace castor::strategy
