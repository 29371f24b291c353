// One flat f32 array of statistics a rank, gathered, then read back in the order (micro-step, rank, module).
#include "strategy/rank_updates.h"

#include "core/ops/cast.h"

namespace castor::strategy {

void apply_updates_of_ranks(dist::Comm& comm, autograd::PendingBufferUpdates& pending, std::int64_t micro_steps) {
  const std::vector<autograd::BufferUpdate> updates = pending.take();
  if (updates.empty()) return;
  if (static_cast<std::int64_t>(updates.size()) % micro_steps != 0) {
    throw InternalError(cat("buffers: ", updates.size(), " updates in ", micro_steps, " micro-steps"));
  }
  std::int64_t elements = 0;
  Device device = kCpu;  // the model's, or meta in a plan
  for (const autograd::BufferUpdate& update : updates) {
    for (const Tensor& each : update.statistics) {
      if (each.dtype() != DType::f32) throw InternalError(cat("buffers: statistics must be f32, got ", each));
      elements += each.numel();
      device = each.device();
    }
  }
  const int world_size = comm.world_size();
  const Tensor all = Tensor::empty({world_size, elements}, DType::f32, device);
  const Tensor own = all.select(0, comm.rank());
  std::int64_t filled = 0;
  for (const autograd::BufferUpdate& update : updates) {
    for (const Tensor& each : update.statistics) {
      copy_into(each, own.narrow(0, filled, each.numel()).reshape(each.shape()));
      filled += each.numel();
    }
  }
  std::vector<dist::Buffer> out;
  for (int rank = 0; rank < world_size; ++rank) out.emplace_back(all.select(0, rank));
  comm.run(dist::Collective::all_gather(own, std::move(out), "statistics of buffers"));

  const std::size_t in_step = updates.size() / static_cast<std::size_t>(micro_steps);
  std::int64_t step_begin = 0;
  for (std::size_t first = 0; first < updates.size(); first += in_step) {
    std::int64_t step_elements = 0;
    for (int rank = 0; rank < world_size; ++rank) {
      std::int64_t at = step_begin;
      for (std::size_t i = first; i < first + in_step; ++i) {
        std::vector<Tensor> statistics;
        for (const Tensor& each : updates[i].statistics) {
          statistics.push_back(all.select(0, rank).narrow(0, at, each.numel()).reshape(each.shape()));
          at += each.numel();
        }
        updates[i].owner->apply_update(statistics);
      }
      step_elements = at - step_begin;
    }
    step_begin += step_elements;
  }
}

}  // namespace castor::strategy
