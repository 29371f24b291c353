// `dd` as the peer of what writes and reads files: the rate a disk gives to a program that does nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace castor::bench {

/// Seconds that dd says it took to write `bytes` (a multiple of 8 MiB) of zeros with O_DIRECT and fsync, in blocks of
/// 8 MiB. Throws Error with dd's words if it failed.
double dd_write_seconds(const std::string& path, std::uint64_t bytes);
/// The same for reading the file with O_DIRECT.
double dd_read_seconds(const std::string& path);

/// The middle one, or the mean of the two in the middle. `values` has at least one.
double median_of(std::vector<double> values);

}  // namespace castor::bench
