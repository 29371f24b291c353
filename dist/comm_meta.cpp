// Collectives that only check their arguments.
#include "dist/comm_meta.h"

#include <numeric>
#include <utility>

namespace castor::dist {
namespace {

class MetaComm final : public Comm {
 public:
  MetaComm(int rank, int world_size) : rank_(rank), members_(static_cast<std::size_t>(world_size)) {
    std::iota(members_.begin(), members_.end(), 0);
  }

  int rank() const override { return rank_; }
  int world_size() const override { return static_cast<int>(members_.size()); }
  const std::string& name() const override { return name_; }
  const std::vector<int>& members() const override { return members_; }
  /// Who else gives which color is not known: everyone joins.
  std::unique_ptr<Comm> split(int color, int) override {
    return color < 0 ? nullptr : make_meta_comm(rank_, world_size());
  }
  void abort(const std::string&) noexcept override {}

 protected:
  bool takes(Device) const override { return true; }
  Work submit(Collective) override { return Work(nullptr); }
  void execute(Collective) override {}

 private:
  int rank_;
  std::string name_ = "meta";
  std::vector<int> members_;
};

}  // namespace

std::unique_ptr<Comm> make_meta_comm(int rank, int world_size) {
  if (world_size < 1 || rank < 0 || rank >= world_size)
    throw ShapeError(cat("make_meta_comm: no rank ", rank, " in a group of ", world_size));
  return std::make_unique<MetaComm>(rank, world_size);
}

}  // namespace castor::dist
