// The gate of a listening port: strangers come in as far as a challenge, and only who answers it is let through.
//
// Delicate: until a connection has proven the job's secret, exactly 64 bytes of it are read and none interpreted; it
// has a deadline, and the number of connections at the gate is bounded (the oldest is dropped), so that neither garbage
// nor silence can hold up those who belong here.
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
#include <string>
#include <vector>

#include "dist/secret.h"
#include "dist/socket.h"

namespace castor::dist {

class Gate {
 public:
  /// Listens; as Listener.
  ///   what   what listens, for log lines: "the job's store"
  Gate(const std::string& address, std::uint16_t port, JobSecret secret, std::string what);

  std::uint16_t port() const { return listener_.port(); }
  /// Adds what to wait for, and lowers `deadline` to when `step` must be called next.
  void add_wanted(std::vector<Readiness>& wanted, Clock::time_point& deadline) const;
  /// Does what can be done now; returns connections that have proven the secret. Logs and closes the others.
  std::vector<Socket> step();
  /// Connections refused so far.
  std::uint64_t refused() const { return refused_; }

 private:
  struct Visitor {
    Socket socket;
    Challenge challenge;
    std::array<std::byte, sizeof(Challenge) + sizeof(Proof)> answer;
    std::size_t have = 0;
    Clock::time_point deadline;
  };
  bool advance(Visitor& visitor);  // true when it has proven itself
  void refuse(const Visitor& visitor, const std::string& why);

  Listener listener_;
  JobSecret secret_;
  std::string what_;
  std::list<Visitor> visitors_;  // oldest first
  std::uint64_t refused_ = 0;
};

/// Connects through a gate: answers its challenge and checks that it knows the secret too. Throws SocketError.
Socket connect_through_gate(const std::string& host, std::uint16_t port, const JobSecret& secret,
                            Clock::time_point deadline, const Look& look = {});

}  // namespace castor::dist
