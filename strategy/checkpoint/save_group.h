// The ranks that write one checkpoint together, as the saver sees them: one process alone, or all ranks of a run.
//
// Delicate: whoever fails says so before anyone goes on, so that a save fails on every rank or on none, and the main
// rank tidies up only when nobody writes any more.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "dist/comm.h"

namespace castor::strategy {

class SaveGroup {
 public:
  /// Null: this process alone. The group must outlive this and be used by nothing else meanwhile.
  explicit SaveGroup(dist::Comm* ranks) : ranks_(ranks) {}

  int rank() const { return ranks_ == nullptr ? 0 : ranks_->rank(); }
  int world_size() const { return ranks_ == nullptr ? 1 : ranks_->world_size(); }
  bool is_main() const { return rank() == 0; }

  /// Runs `action` here and waits for the others to have done theirs. Throws what it threw; where only other ranks
  /// failed, Error naming the first of them and its text; CommError.
  void together(const std::function<void()>& action);
  /// The main rank's text, on every rank.
  std::string from_main(const std::string& text);
  /// Every rank's text, by rank, on every rank.
  std::vector<std::string> gather(const std::string& text);

 private:
  dist::Comm* ranks_;
};

}  // namespace castor::strategy
