// Turns an errno into an IoError whose text says the operation, the path, what the system answered and what to do next.
//
// Delicate: it looks around on the same file system (nearest existing folder, free bytes) to write a useful hint; those
// look-ups may fail too and then the hint is only shorter.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/error.h"
#include "core/base/file_system.h"

namespace castor {

/// "no space left on device (ENOSPC)" for an errno; unknown numbers give "error 4711".
std::string errno_text(int error);

/// `text` in double quotes with control characters escaped and anything past `limit` bytes cut: for names from files.
std::string quote_name(std::string_view text, std::size_t limit = 200);

/// Builds the error for a failed file operation; the caller throws it.
///   operation     "open for writing", "write", "rename to \"b\"", ...
///   error         errno
///   progress      what had happened, e.g. "4096 of 8192 bytes at offset 0"; may be empty
///   needed_bytes  bytes that were still to be written, 0 if unknown: shown when the disk is full
IoError io_error(FileSystem& files, std::string_view operation, const std::string& path, int error,
                 std::string_view progress = {}, std::uint64_t needed_bytes = 0);

/// The IoError with code ENODATA for a read of `expected` bytes at `offset` of which the file held only `got`.
IoError ended_early(const std::string& path, std::uint64_t expected, std::uint64_t offset, std::uint64_t got);

/// True where the disk does not give bytes back that were written (EIO, ENODATA): the file is as good as damaged.
bool is_unreadable(const IoError& error);

}  // namespace castor
