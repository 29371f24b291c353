// Around a model's forward; see boosted_model.h.
#include "strategy/boosted_model.h"

#include <algorithm>
#include <vector>

#include "autograd/graph.h"
#include "core/device/trace.h"
#include "core/ops/cast.h"
#include "strategy/rank_updates.h"

namespace castor::strategy {

BoostedModel::BoostedModel(std::shared_ptr<autograd::TrainableModel> model, Device device, DType compute_dtype,
                           std::uint64_t seed, dist::Comm* comm, CheckpointSaver& saver)
    : model_(std::move(model)),
      device_(device),
      compute_dtype_(compute_dtype),
      seed_(seed),
      comm_(comm),
      saver_(saver) {}

autograd::Batch BoostedModel::on_device(const autograd::Batch& batch) const {
  Tensor inputs = to_device(batch.inputs, device_);
  if (is_floating(inputs.dtype())) inputs = cast(inputs, compute_dtype_);
  return {inputs, batch.targets.defined() ? to_device(batch.targets, device_) : Tensor{}};
}

BoostedModel::Losses BoostedModel::loss(const autograd::Batch& batch) {
  return run(batch, [](autograd::TrainableModel& model, const autograd::Batch& here) { return model.loss(here); });
}

void BoostedModel::begin_random(autograd::RandomState& state) const {
  const auto step = static_cast<std::uint64_t>(optimizer_->stepper().step_count());
  const auto k = static_cast<std::uint64_t>(optimizer_->window_position() * world_size() + rank());
  state.begin(seed_, step, k);
}

BoostedModel::Losses BoostedModel::run(const autograd::Batch& batch, const Pass& pass) {
  if (optimizer_ == nullptr) {
    throw InternalError("loss: the model was boosted without an optimizer, so it can only predict");
  }
  model_->train();
  begin_random(autograd::random_state());
  optimizer_->sharding().begin_pass(true);
  if (optimizer_->is_last_chance() && !watch_) watch_.emplace();
  std::optional<autograd::ResultObserverScope> watching;
  if (watch_) watching.emplace(*watch_);
  const autograd::BufferUpdateScope collect(buffer_updates_);
  const TraceSpan span("forward", "phase", device_);
  return pass(*model_, on_device(batch));
}

Tensor BoostedModel::predict(const autograd::Batch& batch) {
  model_->eval();
  if (optimizer_ != nullptr) optimizer_->sharding().begin_pass(false);
  const autograd::NoGradScope no_grad;
  const Tensor predictions = model_->predict(on_device(batch));
  return is_floating(predictions.dtype()) ? cast(predictions, DType::f32) : predictions;
}

WeightPlaces BoostedModel::weight_places() const {
  if (optimizer_ == nullptr || optimizer_->sharding().has_whole_weights()) return {};
  WeightPlaces places;
  for (const autograd::Variable& parameter : optimizer_->sharding().sharded()) places[parameter.identity()];
  for (const autograd::Part& piece : optimizer_->sharding().pieces())
    places[piece.variable.identity()].push_back({piece.offset, piece.weights});
  return places;
}

void BoostedModel::weights_loaded(bool has_masters) {
  if (optimizer_ == nullptr) return;
  if (!has_masters) optimizer_->stepper().refresh_masters();
  optimizer_->sharding().weights_loaded();
}

std::string BoostedModel::first_not_finite() {
  const std::string own = watch_ ? watch_->text() : "";
  if (world_size() == 1) return own;
  constexpr std::size_t kLongest = 256;  // bytes of the text that ranks tell each other
  std::vector<std::uint8_t> text(kLongest);
  std::copy_n(own.begin(), std::min(own.size(), kLongest - 1), text.begin());
  const auto length = static_cast<std::int64_t>(kLongest);
  const Tensor all = Tensor::empty({world_size() * length}, DType::u8);
  comm_->all_gather(Tensor::from_values(text, {length}), all, "where values are not finite");
  const std::vector<std::uint8_t> texts = all.to_vector<std::uint8_t>();
  for (std::int64_t rank = 0; rank < world_size(); ++rank) {
    const std::string found(reinterpret_cast<const char*>(texts.data()) + rank * length);
    if (!found.empty()) return cat(found, " on rank ", rank);
  }
  return {};
}

void BoostedModel::end_window(std::int64_t micro_steps) {
  watch_.reset();
  for (const auto& [name, buffer] : model_->named_buffers()) saver_.before_change(buffer.data());
  if (world_size() == 1) {
    buffer_updates_.apply();
  } else {
    apply_updates_of_ranks(*comm_, buffer_updates_, micro_steps);
  }
}

}  // namespace castor::strategy
