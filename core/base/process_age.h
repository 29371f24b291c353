// How long this process has existed: what a user waits before the first step includes loading the program.
#pragma once

namespace castor {

/// Seconds since the system started this process, in steps of its clock (10 ms). Throws FormatError where
/// /proc/self/stat is not as proc(5) says, IoError.
double process_age_seconds();

}  // namespace castor
