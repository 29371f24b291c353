// URLs as far as downloads need them: the parts that are sent, shown, compared and hashed.
//
// Delicate: a URL may hold secrets before '@' (credentials) and after '?' (signatures), so `shown` has neither and is
// the only form that reaches messages, logs and files. Text from a user or a server never reaches the network with
// characters in it that could end a line of a request.
#pragma once

#include <string>
#include <string_view>

namespace castor::strategy {

/// What stands before "://", in lower case; empty if `text` is a plain path.
std::string scheme_of(std::string_view text);

/// `text` with %XX replaced. Throws ConfigError for a '%' without two hexadecimal digits, or for %00.
std::string percent_decoded(std::string_view text);

/// An http or https URL in parts.
struct Url {
  std::string scheme;  ///< "http" or "https"
  std::string user;    ///< percent-decoded, as is the password; both empty if there is no '@'
  std::string password;
  std::string origin;     ///< "https://host:8443": scheme and host in lower case, the port as written
  std::string target;     ///< "/path?query"
  std::string file_name;  ///< the last part of the path; may be empty

  /// What is requested: no credentials, no fragment.
  std::string request() const { return origin + target; }
  /// What people may see: no credentials, "?..." for a query.
  std::string shown() const;
};

/// Throws ConfigError for another scheme, a missing host, or spaces and control characters.
Url parse_url(std::string_view text);

/// The name in the cache: 16 hexadecimal digits of the SHA-256 of what is requested, '_', and the file's name as far
/// as it is made of letters, digits and . _ + - (others become '_'; a long name keeps its end).
std::string cache_name(const Url& url);

/// The digits of a name like "resnet50-0676ba61.pth" (.pth or .pt, 8 to 64 of them, lower case): the SHA-256 of such a
/// file begins with them. Empty where there are none, and for a date, "model-20210831.pth".
std::string hash_in_name(std::string_view file_name);

}  // namespace castor::strategy
