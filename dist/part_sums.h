// PartSums: statistics of parameters whose parts lie with several ranks, in the order of their blocks.
//
// Delicate: a sum over a parameter must not depend on where it was cut. Sums of squares are gathered block by block and
// added by everyone; statistics of other shapes (rows and columns of a matrix) travel from owner to owner as a carry,
// and the last owner sends the finished ones back. Owners visit parameters in one order, which is what keeps the
// travelling carries from locking up.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "autograd/optim/stepper.h"
#include "dist/comm.h"

namespace castor::dist {

/// A rank's stretch of a parameter.
struct OwnedStretch {
  std::size_t parameter = 0;  ///< number in the model's order
  std::int64_t offset = 0;    ///< a multiple of kBlockElements
  std::int64_t count = 0;
};

class PartSums final : public autograd::StatsReducer {
 public:
  /// On every rank with the same arguments; the group must outlive this.
  ///   owned  by rank: its stretches in the order of its stepper's parts. All ranks step common parameters in one order
  ///   names   of the parameters, for errors
  ///   device  where sums of squares meet; the group takes tensors there
  PartSums(Comm& comm, std::vector<std::vector<OwnedStretch>> owned, std::vector<std::string> names, Device device);

  autograd::Stats reduce(std::size_t part, const std::function<void(autograd::Stats& carry)>& add) override;
  Tensor sum_blocks(const std::vector<autograd::BlockRun>& runs) override;
  const std::vector<std::string>& names() const override { return names_; }

 private:
  void send(const autograd::Stats& stats, int to, const std::string& label);
  autograd::Stats receive(int from, const std::string& label);
  void order_blocks();

  Comm& comm_;
  std::vector<std::vector<OwnedStretch>> owned_;
  std::vector<std::string> names_;
  Device device_;
  std::vector<std::vector<int>> owners_;  // by parameter: ranks in order of their stretches
  std::vector<std::int64_t> begins_;      // of each rank's blocks among all ranks', and the end
  Tensor in_order_;                       // i64: where each block is among them, by parameter and offset
  std::vector<std::int64_t> segments_;    // of each parameter's blocks in that order, and the end
};

}  // namespace castor::dist
