// Collectives that only check their arguments, count, and take the memory that they would.
#include "dist/comm_meta.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace castor::dist {
namespace {

// What the other ranks' links carry of a collective, one way: each piece is sent to its owner, or by its owner to all.
double bytes_one_way(const Collective& collective, int rank, int world_size) {
  double in = 0, out = 0, own = 0;
  for (const Buffer& buffer : collective.in) in += static_cast<double>(buffer.view.bytes());
  for (const Buffer& buffer : collective.out) out += static_cast<double>(buffer.view.bytes());
  const auto own_of = [&](const std::vector<Buffer>& pieces) {
    return static_cast<double>(pieces.at(static_cast<std::size_t>(rank)).view.bytes());
  };
  const double others = world_size - 1;
  switch (collective.op) {
    case CollectiveOp::kAllReduce:
      return 2 * out * others / world_size;
    case CollectiveOp::kReduceScatter:
      own = own_of(collective.in);
      return std::max(in - own, own * others);
    case CollectiveOp::kAllGather:
      return std::max(out - in, in * others);
    case CollectiveOp::kAllToAll:
      return std::max(in - own_of(collective.in), out - own_of(collective.out));
    case CollectiveOp::kBroadcast:
      return world_size == 1 ? 0 : out;
    case CollectiveOp::kSend:
    case CollectiveOp::kRecv:
      return std::max(in, out);
    case CollectiveOp::kBarrier:
      break;
  }
  return 0;
}

/// Memory that a collective holds until somebody waits for it.
class MetaWork final : public Work::State {
 public:
  explicit MetaWork(std::vector<Tensor> scratch) : scratch_(std::move(scratch)) {}
  bool done() const override { return true; }
  void wait(std::optional<std::chrono::milliseconds>) override { scratch_.clear(); }

 private:
  std::vector<Tensor> scratch_;
};

class MetaComm final : public Comm {
 public:
  MetaComm(int rank, int world_size, std::shared_ptr<MetaTraffic> traffic)
      : rank_(rank), members_(static_cast<std::size_t>(world_size)), traffic_(std::move(traffic)) {
    std::iota(members_.begin(), members_.end(), 0);
  }

  int rank() const override { return rank_; }
  int world_size() const override { return static_cast<int>(members_.size()); }
  const std::string& name() const override { return name_; }
  const std::vector<int>& members() const override { return members_; }
  /// Who else gives which color is not known: everyone joins.
  std::unique_ptr<Comm> split(int color, int) override {
    return color < 0 ? nullptr : make_meta_comm(rank_, world_size(), traffic_);
  }
  std::unique_ptr<Comm> block(int size) const { return make_meta_comm(rank_ % size, size, traffic_); }
  void abort(const std::string&) noexcept override {}

 protected:
  bool takes(Device) const override { return true; }
  Work submit(Collective collective) override {
    count(collective);
    std::vector<Tensor> scratch = received_terms(collective);
    return scratch.empty() ? Work(nullptr) : Work(std::make_shared<MetaWork>(std::move(scratch)));
  }
  void execute(Collective collective) override { submit(std::move(collective)).wait(); }

 private:
  void count(const Collective& collective) {
    if (traffic_ == nullptr) return;
    ++traffic_->collectives;
    traffic_->bytes += bytes_one_way(collective, rank_, world_size());
  }

  // Where a GPU's sum receives the other ranks' terms, as in comm_device.cpp; none on the CPU, which reads them there.
  std::vector<Tensor> received_terms(const Collective& collective) const {
    const bool is_sum = collective.op == CollectiveOp::kReduceScatter || collective.op == CollectiveOp::kAllReduce;
    if (!is_sum || !collective.device().is_meta() || kernel_type(collective.device()) != DeviceType::cuda) return {};
    const View& own = collective.op == CollectiveOp::kAllReduce ? collective.out.front().view
                                                                : collective.in[static_cast<std::size_t>(rank_)].view;
    const CategoryScope category(Category::workspace);
    std::vector<Tensor> terms;
    for (int r = 1; r < world_size(); ++r)
      terms.push_back(Tensor::empty({own.numel()}, own.dtype, collective.device()));
    return terms;
  }

  int rank_;
  std::string name_ = "meta";
  std::vector<int> members_;
  std::shared_ptr<MetaTraffic> traffic_;
};

}  // namespace

std::unique_ptr<Comm> make_meta_comm(int rank, int world_size, std::shared_ptr<MetaTraffic> traffic) {
  if (world_size < 1 || rank < 0 || rank >= world_size)
    throw ShapeError(cat("make_meta_comm: no rank ", rank, " in a group of ", world_size));
  return std::make_unique<MetaComm>(rank, world_size, std::move(traffic));
}

std::unique_ptr<Comm> split_blocks(Comm& comm, int size) {
  if (const auto* on_paper = dynamic_cast<const MetaComm*>(&comm)) return on_paper->block(size);
  return comm.split(comm.rank() / size, comm.rank());
}

}  // namespace castor::dist
