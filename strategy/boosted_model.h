// BoostedModel: a model that Booster::boost placed and spread, with what belongs around its forward: the micro-step's
// random numbers, gathering, inputs in the model's precision, and the order in which all ranks' batch statistics reach
// its buffers.
//
// Delicate: a training pass belongs to the micro-step that the next backward ends: random numbers and statistics are
// counted by it. So all of a micro-step's forwards happen in one call of `loss` or `run`.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "autograd/finite_watch.h"
#include "autograd/nn/buffer_update.h"
#include "autograd/nn/trainable.h"
#include "autograd/random_state.h"
#include "dist/comm.h"
#include "strategy/boosted_optimizer.h"
#include "strategy/checkpoint.h"
#include "strategy/checkpoint/saver.h"
#include "strategy/precision.h"

namespace castor::strategy {

class BoostedModel {
 public:
  /// Losses and other scalars by name, recorded.
  using Losses = std::map<std::string, autograd::Variable>;
  /// What a training pass does with the model and the batch on the model's device.
  using Pass = std::function<Losses(autograd::TrainableModel& model, const autograd::Batch& batch)>;

  /// Made by Booster::boost. Group and saver must outlive it.
  ///   comm  null: this process alone
  BoostedModel(std::shared_ptr<autograd::TrainableModel> model, Device device, DType compute_dtype, std::uint64_t seed,
               dist::Comm* comm, CheckpointSaver& saver);

  /// The user's own model.
  autograd::TrainableModel& module() { return *model_; }
  const autograd::TrainableModel& module() const { return *model_; }
  Device device() const { return device_; }

  /// The training pass of one micro-step: the model's losses of `batch`, which may lie on the host.
  Losses loss(const autograd::Batch& batch);
  /// The same with another pass than the model's `loss`: with a criterion of the program's own, or several forwards.
  Losses run(const autograd::Batch& batch, const Pass& pass);
  /// The model's predictions in eval mode, f32 where they are floating point. All ranks call it together where weights
  /// are sharded.
  Tensor predict(const autograd::Batch& batch);

  /// Random numbers of later steps start from here: what a resume does with the saved run's seed.
  void set_seed(std::uint64_t seed) { seed_ = seed; }
  std::uint64_t seed() const { return seed_; }

  /// Whose window counts its micro-steps; null: it is not trained.
  BoostedOptimizer* optimizer() { return optimizer_; }
  const BoostedOptimizer* optimizer() const { return optimizer_; }
  void set_optimizer(BoostedOptimizer& optimizer) { optimizer_ = &optimizer; }
  /// Where weights are that are not whole in this process.
  WeightPlaces weight_places() const;
  /// After weights were loaded into the model or into weight_places().
  ///   has_masters  f32 masters were loaded, too; else they follow the weights
  void weights_loaded(bool has_masters);

  // For recorded passes.
  /// Names the random numbers of the micro-step that comes next.
  void begin_random(autograd::RandomState& state) const;
  /// What the passes of this window ask of the buffers.
  autograd::PendingBufferUpdates& buffer_updates() { return buffer_updates_; }

  // For the optimizer.
  /// Who sees what ops give in the window that decides whether training is given up; null in all others.
  autograd::ResultObserver* watch() { return watch_ ? &*watch_ : nullptr; }
  /// On all ranks together: where the first value that is not finite arose; empty if nobody saw one.
  std::string first_not_finite();
  /// Applies what a window of so many micro-steps asked of the buffers.
  void end_window(std::int64_t micro_steps);

 private:
  autograd::Batch on_device(const autograd::Batch& batch) const;
  int world_size() const { return comm_ == nullptr ? 1 : comm_->world_size(); }
  int rank() const { return comm_ == nullptr ? 0 : comm_->rank(); }

  std::shared_ptr<autograd::TrainableModel> model_;
  Device device_;
  DType compute_dtype_;
  std::uint64_t seed_;
  dist::Comm* comm_;
  CheckpointSaver& saver_;
  BoostedOptimizer* optimizer_ = nullptr;
  autograd::PendingBufferUpdates buffer_updates_;
  std::optional<autograd::FiniteWatch> watch_;
};

}  // namespace castor::strategy
