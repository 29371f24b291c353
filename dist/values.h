// Texts, numbers and lists between ranks: what code says to other ranks beside tensors. The names are those of
// mmengine's dist helpers.
//
// Delicate: a group may be null, which is a process alone: then everything returns what this process has, so that
// callers need no second path. All ranks of a group make the same calls in the same order.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dist/comm.h"

namespace castor::dist {

inline int rank_of(const Comm* comm) { return comm == nullptr ? 0 : comm->rank(); }
inline int world_size_of(const Comm* comm) { return comm == nullptr ? 1 : comm->world_size(); }
inline bool is_main(const Comm* comm) { return rank_of(comm) == 0; }
/// Nobody goes on before all have come.
void barrier(Comm* comm);
/// Runs `fn` on rank 0 only.
void master_only(const Comm* comm, const std::function<void()>& fn);

/// Every rank's text, by rank, on every rank. Throws CommError.
///   label  the same on all ranks, for errors and records
std::vector<std::string> all_gather_object(Comm* comm, const std::string& text, const std::string& label = "texts");
/// Rank `root`'s text, on every rank.
std::string broadcast_object(Comm* comm, const std::string& text, int root = 0, const std::string& label = "a text");
/// The combination of every rank's value under each name. All ranks must have the same names.
///   is_mean  divide the sum by the number of ranks
/// Throws CommError, also where the number of names differs.
std::map<std::string, double> all_reduce_dict(Comm* comm, const std::map<std::string, double>& values,
                                              bool is_mean = false, const std::string& label = "values");
/// One seed for all: rank 0's.
std::uint64_t sync_random_seed(Comm* comm, std::uint64_t seed);
/// The results of a data set whose sample i was done by rank i % W as its (i / W)-th: all of them in order, on every
/// rank; what was done beyond `size` is dropped (ranks may repeat samples to have equally many).
/// Throws InternalError if ranks have too few.
std::vector<std::string> collect_results(Comm* comm, const std::vector<std::string>& own, std::size_t size);

}  // namespace castor::dist
