// Cursor arithmetic of the loader.
#include "strategy/data/data_loader.h"

#include "core/base/error.h"

namespace castor::strategy {

DataLoader::DataLoader(std::shared_ptr<const Dataset> dataset, const SamplerOptions& options)
    : dataset_(std::move(dataset)), options_(options), sampler_(dataset_->size(), options) {}

autograd::Batch DataLoader::at(std::int64_t epoch, std::int64_t micro_step) const {
  return dataset_->batch(sampler_.micro_batch(epoch, micro_step));
}

autograd::Batch DataLoader::next() {
  autograd::Batch batch = at(cursor_.epoch, cursor_.micro_step);
  if (++cursor_.micro_step == length()) cursor_ = {cursor_.epoch + 1, 0};
  return batch;
}

void DataLoader::seek(const SamplerCursor& cursor) {
  if (cursor.epoch < 0 || cursor.micro_step < 0 || cursor.micro_step >= length()) {
    throw ConfigError(cat("dataloader: cursor (epoch ", cursor.epoch, ", micro-step ", cursor.micro_step,
                          ") is outside epochs of ", length(), " micro-steps"),
                      "train_dataloader");
  }
  cursor_ = cursor;
}

}  // namespace castor::strategy
