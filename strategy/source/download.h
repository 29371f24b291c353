// Fetching a URL into the cache: what source.h promises about files from the net, apart from how they are named.
//
// Delicate: a file with the final name is always whole, so finding it needs no lock; everything before that happens
// under the lock of the name.
#pragma once

#include <string>

#include "strategy/source/source.h"

namespace castor::strategy {

/// The cached file of an http or https URL, downloaded if it is not there. Throws as resolve_source.
std::string download(const std::string& url, const SourceOptions& options, FileSystem& files = posix_file_system());

}  // namespace castor::strategy
