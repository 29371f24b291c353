// What benchmarks of jobs share: ranks of one thread each, Castor's and a peer's, are started in turn; a rank times its
// repeats, and medians over the rounds are compared.
//
// Delicate: the ranks of a job together are "own" when it is asked what else the machine did; a round in which others
// took more than --max-other percent of the CPUs is void and run again.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dist/comm.h"

namespace castor::bench {

/// How often and among how many.
struct JobTiming {
  int ranks = 2;
  int rounds = 5;
  int repeats = 7;
  double max_other = 5;  ///< percent of all CPUs
  /// Takes `--ranks N --rounds N --repeats N --max-other PCT` out of `words`; the others stay. Throws ConfigError.
  void read(std::vector<std::string>& words);
};

/// One of those that are compared: a program that writes its result to a file.
struct JobSide {
  std::string name;
  /// The command of every rank; the folder is empty and goes away after the run.
  std::function<std::vector<std::string>(const std::string& result_file, const std::string& folder)> command;
};

/// What is compared.
struct JobRace {
  std::string name;           ///< "%" stands for the side's name
  std::string unit;           ///< "GB/s", "tokens/s"
  double items = 0;           ///< of the unit, in one repeat of all ranks together
  std::vector<JobSide> ours;  ///< each gives a line of JSON
  std::vector<JobSide> peer;  ///< one, or none
};

/// Runs all sides in turn until `rounds` of them were quiet, at most three times as often, and prints a line for each
/// of ours. Throws ConfigError when no round was quiet, CommError when a job fails.
void race_jobs(const JobTiming& timing, const JobRace& race);

/// A rank's part: keeps the process on its own CPU where there is one for each, runs `warmups` and then `repeats` of
/// `work`, each behind a barrier; rank 0 writes the result.
void time_rank(dist::Comm& world, int warmups, int repeats, const std::string& result_file,
               const std::function<void()>& work);
/// To be called before the process makes threads.
void pin_rank(int rank, int ranks);

}  // namespace castor::bench
