// Making recordings and running them; see recorded_step.h.
#include "strategy/recorded_step.h"

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/device/caching_allocator.h"
#include "core/device/dispatch.h"
#include "core/device/recording_scope.h"
#include "core/ops/cast.h"

namespace castor::strategy {
namespace {

// Streams of random numbers in a micro-step: one for each dropout.
constexpr std::int64_t kMostKeys = 8192;
// The position in a window from which on micro-steps are alike: they add to the sums that the second one made.
constexpr std::int64_t kLater = 2;

void add_shape(std::string& text, const Tensor& x) {
  if (x.defined()) text += cat(x, ";");
}

}  // namespace

struct RecordedStep::Made {
  Made(const autograd::Batch& batch, Device device, bool is_later) : runs_again(is_later), keys(device, kMostKeys) {
    inputs.inputs = Tensor::empty(batch.inputs.shape(), batch.inputs.dtype(), device);
    if (batch.targets.defined()) inputs.targets = Tensor::empty(batch.targets.shape(), batch.targets.dtype(), device);
  }
  void take(const autograd::Batch& batch) {
    copy_across(contiguous(batch.inputs), inputs.inputs);
    if (batch.targets.defined()) copy_across(contiguous(batch.targets), inputs.targets);
  }

  bool runs_again;         // in the same window
  autograd::Batch inputs;  // what the recording reads
  RecordedKeys keys;
  std::vector<std::uint64_t> modules;  // who draws them, in order
  std::vector<const void*> addresses;  // of weights and buffers, when it was made
  std::unique_ptr<Recording> recording;
  Values values;
  std::vector<std::pair<autograd::Variable, Tensor>> gradients;
  std::vector<autograd::BufferUpdate> updates;
};

RecordedStep::RecordedStep(BoostedModel& model) : model_(model) {}
RecordedStep::~RecordedStep() = default;

// Of what a pass reads beside its batch: weights, buffers, and the sums that gradients are added to.
std::vector<const void*> RecordedStep::addresses() const {
  std::vector<const void*> all;
  for (const auto& [name, parameter] : model_.module().named_parameters()) {
    all.push_back(parameter.data().storage()->data());
    all.push_back(parameter.grad().defined() ? parameter.grad().storage()->data() : nullptr);
  }
  for (const auto& [name, buffer] : model_.module().named_buffers()) all.push_back(buffer.data().storage()->data());
  return all;
}

RecordedStep::Values RecordedStep::run(const autograd::Batch& batch, const Pass& pass) {
  if (innermost_observer != nullptr) return pass(batch);  // who watches ops wants to see them
  Key key{std::min(model_.optimizer()->window_position(), kLater), {}};
  add_shape(key.second, batch.inputs);
  add_shape(key.second, batch.targets);
  const auto [found, is_first] = made_.try_emplace(std::move(key));
  if (is_first) return pass(batch);
  std::unique_ptr<Made>& made = found->second;
  if (made == nullptr || made->addresses != addresses()) {
    try {
      auto fresh = std::make_unique<Made>(batch, model_.device(), found->first.first == kLater);
      fresh->take(batch);
      Values values = record(*fresh, pass);
      made = std::move(fresh);
      return values;
    } catch (const OutOfMemory& error) {
      throw OutOfMemory(cat(error.what(), " Recorded passes keep memory of their own: leave compile out."),
                        error.requested, error.free, error.limit);
    }
  }
  made->take(batch);
  return repeat(*made);
}

RecordedStep::Values RecordedStep::record(Made& made, const Pass& pass) {
  const Device device = model_.device();
  made.addresses = addresses();
  // Passes that ran op by op have left memory behind that the recording cannot have.
  allocator(device).release_cached();
  std::vector<RandomKey> keys;
  const std::size_t updates_before = model_.buffer_updates().updates().size();
  {
    const CachingAllocator::PrivateScope memory(allocator(device));
    const autograd::RandomLogScope log([&](std::uint64_t module, RandomKey key) {
      if (!made.keys.add(key)) return;
      made.modules.push_back(module);
      keys.push_back(key);
    });
    const RecordedKeysScope places(made.keys);
    RecordingScope recording(backend(device));
    made.values = pass(made.inputs);
    made.recording = recording.end();
  }
  std::vector<autograd::BufferUpdate> updates = model_.buffer_updates().take();
  for (std::size_t i = 0; i < updates.size(); ++i) {
    if (i < updates_before) {
      model_.buffer_updates().receive(std::move(updates[i]));
    } else {
      made.updates.push_back(std::move(updates[i]));
    }
  }
  for (const auto& [name, parameter] : model_.module().named_parameters()) {
    if (parameter.grad().defined()) made.gradients.emplace_back(parameter, parameter.grad());
  }
  made.keys.write(keys);
  made.recording->run();
  hand_on_updates(made);
  return made.values;
}

// They are applied at the window's end, when the recording may have run again and written over them.
void RecordedStep::hand_on_updates(const Made& made) {
  for (autograd::BufferUpdate update : made.updates) {
    for (Tensor& statistic : update.statistics) {
      if (made.runs_again) statistic = clone(statistic);
    }
    model_.buffer_updates().receive(std::move(update));
  }
}

RecordedStep::Values RecordedStep::repeat(Made& made) {
  autograd::RandomState random;
  model_.begin_random(random);
  std::vector<RandomKey> keys;
  for (const std::uint64_t module : made.modules) keys.push_back(random.next(module));
  made.keys.write(keys);
  made.recording->run();
  for (const auto& [parameter, gradient] : made.gradients) parameter.set_grad(gradient);
  hand_on_updates(made);
  model_.optimizer()->backward_was_run();
  return made.values;
}

}  // namespace castor::strategy
