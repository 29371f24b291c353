// What the writer's and the reader's halves of the manifest share, and nobody else needs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "formats/manifest.h"

namespace castor::formats {

inline constexpr std::string_view kManifestFormat = "castor-checkpoint";
/// The oldest revision whose readers can read what this code writes.
inline constexpr std::int64_t kManifestReads = 1;
inline constexpr std::uint64_t kMaxFileBytes = std::uint64_t{1} << 62;
inline constexpr std::string_view kParamRole = "param";
inline constexpr std::string_view kBufferRole = "buffer";

/// The end of a manifest's text: `"xxh3":"<16 digits>"}` and a line feed.
std::string manifest_tail(std::uint64_t digest);

/// The text of a manifest, and what such a text says, without check_manifest: for a rank's part, which is not whole.
std::string unchecked_manifest_text(const Manifest& manifest);
Manifest unchecked_manifest(std::string_view text, const std::string& file);

/// Throws FormatError{file} unless everything that parse_manifest promises holds.
void check_manifest(const Manifest& manifest, const std::string& file);

}  // namespace castor::formats
