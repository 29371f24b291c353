// The job's meeting place: a small map of keys to values that one process holds and all reach over TCP. Ranks find each
// other through it, and it watches over them (dist/watch.h).
//
// Delicate: it listens where it is told to (loopback unless told otherwise) and serves only who proves the job's
// secret; frames, keys and the whole map are bounded. Every wait has a deadline.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "dist/failure.h"
#include "dist/secret.h"
#include "dist/wire.h"

namespace castor::dist {

/// Holds the map and serves it on a thread of its own until it is destroyed.
class StoreServer {
 public:
  /// Listens. Throws SocketError.
  ///   address  "127.0.0.1" is reachable from this machine only
  ///   port     0 picks a free one
  StoreServer(const std::string& address, std::uint16_t port, const JobSecret& secret);
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;
  ~StoreServer();

  std::uint16_t port() const;
  /// Waits until no rank is enlisted any more, at most `limit`; returns whether that is so. Whoever holds the store
  /// stays until then.
  bool wait_for_all_to_leave(std::chrono::milliseconds limit) const;
  /// Connections dropped because they did not prove the secret or broke the protocol.
  std::uint64_t refused() const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

/// One client's connection to the store. Calls from several threads run one after the other.
class Store {
 public:
  /// Throws SocketError.
  Store(const std::string& host, std::uint16_t port, const JobSecret& secret, Clock::time_point deadline);

  /// Sets a key (at most 1 KiB) to a value (at most 1 MiB).
  void set(const std::string& key, const std::string& value);
  /// The key's value, as soon as someone has set it. Throws CommTimeout naming the key after `limit`.
  std::string wait(const std::string& key, std::chrono::milliseconds limit);
  /// Adds to a key's number, 0 at first and apart from its value; returns the sum.
  std::int64_t add(const std::string& key, std::int64_t amount);
  /// This machine's address as the store sees it from the client's side: where other ranks can reach it.
  std::string local_address() const { return connection_.socket().local_address(); }

 private:
  FrameReader ask(const std::string& frame, std::chrono::milliseconds limit);
  std::mutex mutex_;
  FrameSocket connection_;
};

/// store.wait(key, limit) that also ends when the job fails. Throws JobFailed then.
std::string wait_for_key(Store& store, const Health& health, const std::string& key, std::chrono::milliseconds limit);

}  // namespace castor::dist
