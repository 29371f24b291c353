// Feeds micro-batches in the sampler's order from a cursor. Making a batch costs microseconds beside a training step on
// the same cores, so it happens on the calling thread.
#pragma once

#include <memory>

#include "strategy/data/dataset.h"
#include "strategy/data/sampler.h"

namespace castor::strategy {

class DataLoader {
 public:
  DataLoader(std::shared_ptr<const Dataset> dataset, const SamplerOptions& options);

  const Dataset& dataset() const { return *dataset_; }
  /// For another loader of the same data.
  const std::shared_ptr<const Dataset>& shared_dataset() const { return dataset_; }
  /// Micro-steps in an epoch.
  std::int64_t length() const { return sampler_.micro_steps_per_epoch(); }
  std::int64_t batch_size() const { return options_.batch_size; }

  /// The next micro-batch; after the last one of an epoch comes the first of the next.
  autograd::Batch next();
  /// Micro-step `micro_step` of `epoch`, without moving the cursor.
  autograd::Batch at(std::int64_t epoch, std::int64_t micro_step) const;

  const SamplerCursor& cursor() const { return cursor_; }
  /// Jumps in O(1). Throws ConfigError for a cursor outside the data.
  void seek(const SamplerCursor& cursor);

 private:
  std::shared_ptr<const Dataset> dataset_;
  SamplerOptions options_;
  Sampler sampler_;
  SamplerCursor cursor_;
};

}  // namespace castor::strategy
