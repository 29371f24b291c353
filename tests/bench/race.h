// Races of candidates for one piece of work: the tables that say which library routine or algorithm Castor uses, and
// what the others cost.
//
// Delicate: candidates run in turn within a round, so that a busy moment hits all of them; medians are over rounds.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace castor::bench {

/// One way to do the work, on buffers that it holds.
struct Candidate {
  std::string name;
  std::function<void()> run;
};

/// Races `candidates` and prints their times as a table to stderr and one line of JSON, the chosen one against the best
/// other.
///   name    of the work, with its shape
///   flops   of one call
///   rounds  how often each candidate is timed
///   chosen  index of the one that Castor uses
void race(const std::string& name, double flops, int rounds, const std::vector<Candidate>& candidates,
          std::size_t chosen);

}  // namespace castor::bench
