// Meeting and leaving. Delicate: errors of sockets become errors of the job here, so that callers meet CommError only.
#include "dist/job.h"

#include "core/base/log.h"
#include "core/device/caching_allocator.h"
#include "dist/comm_mpi.h"
#include "dist/comm_shm.h"
#include "dist/comm_tcp.h"
#include "dist/flight_recorder.h"
#include "dist/ring_memory.h"
#include "dist/store.h"
#include "dist/watch.h"

namespace castor::dist {
namespace {
constexpr std::chrono::milliseconds kShortFarewell{2'000};  // how long the store stays for the others after a failure
}  // namespace

/// What this process shares with the others, and makes links from.
class Job::Members final : public Fabric {
 public:
  Members(const RankInfo& info, const JobOptions& options)
      : options_(options),
        secret_(info.secret),
        recorder_(info.rank),
        store_(info.store_host, info.store_port, secret_, Clock::now() + options.comm.timeout),
        watch_(info.store_host, info.store_port, secret_, info.rank, health_, recorder_,
               Clock::now() + options.comm.timeout) {
    if (!options.record_folder.empty()) recorder_.set_folder(options.record_folder);
    // What is allocated from now on lies where ranks of this machine can read it.
    const bool may_share = options.transport == Transport::kAuto || options.transport == Transport::kSharedMemory;
    if (may_share && info.local_world_size > 1 && SharedHeap::open() != nullptr) allocator(kCpu).release_cached();
  }

  Health& health() override { return health_; }
  FlightRecorder& recorder() override { return recorder_; }

  std::unique_ptr<Link> connect(const std::string& name, const std::vector<int>& members, int rank,
                                std::chrono::milliseconds limit) override {
    if (members.size() == 1) {
      return std::make_unique<RingLink>(std::make_shared<RingMemory>(map_private_memory(RingMemory::bytes_for(1)), 1),
                                        0, members, health_);
    }
    const int self = members[static_cast<std::size_t>(rank)];
    try {
      store_.set(cat("here/", name, "/", rank), "");
      if (options_.transport == Transport::kMpi) {
        transport_ = "mpi";
        return connect_mpi(store_, health_, name, members, rank, limit);
      }
      if (options_.transport != Transport::kTcp) {
        if (auto link = connect_shared_memory(store_, health_, name, members, rank, limit)) {
          transport_ = "shared memory";
          return link;
        }
        if (options_.transport == Transport::kSharedMemory) {
          throw SocketError("its ranks do not share one machine's memory; use transport auto or tcp");
        }
      }
      transport_ = "tcp";
      return connect_tcp(store_, secret_, health_, name, members, rank, limit);
    } catch (const JobFailed&) {
      throw_failure(health_.failure(), cat("connecting group ", name));
    } catch (const SocketError& error) {
      throw_failure(health_.report(
          {self, "connect", 0, false, cat("rank ", self, " cannot connect group ", name, ": ", error.what())}));
    } catch (const CommTimeout& error) {
      throw_failure(health_.report(absence(name, members, self, error)));
    }
  }

  const std::string& transport_name() const { return transport_; }

 private:
  /// Who keeps a new group waiting.
  Failure absence(const std::string& name, const std::vector<int>& members, int self, const CommTimeout& error) {
    std::string absent;
    int first = self;
    for (std::size_t place = 0; place < members.size(); ++place) {
      try {
        store_.wait(cat("here/", name, "/", place), std::chrono::milliseconds(0));
      } catch (const SocketError&) {
        break;  // the store is gone, too: what is known so far must do
      } catch (const CommTimeout&) {
        if (absent.empty()) first = members[place];
        absent += cat(absent.empty() ? "rank " : ", ", members[place]);
      }
    }
    std::string text = cat("rank ", self, " waits in vain in group ", name, ": ", error.what());
    if (!absent.empty()) text = cat(absent, " did not come to group ", name, "; ", text);
    return {first, "connect", 0, true, text};
  }

  JobOptions options_;
  JobSecret secret_;
  Health health_;
  FlightRecorder recorder_;
  std::string transport_ = "none";
  Store store_;
  Watch watch_;  // last: it leaves the job before anything else goes
};

Job::Job(const RankInfo& info, const JobOptions& options) : info_(info), farewell_(options.comm.timeout) {
  try {
    if (info_.holds_store) {
      server_ = std::make_unique<StoreServer>(info_.store_listen_address, info_.store_port, JobSecret(info_.secret));
      info_.store_port = server_->port();
    }
    members_ = std::make_shared<Members>(info_, options);
  } catch (const SocketError& error) {
    throw CommError(cat("rank ", info_.rank, " cannot join the job: ", error.what()), info_.rank, "join", 0);
  }
  world_ = HostComm::connect_world(members_, info_.rank, info_.world_size, options.comm);
  world_->barrier("join");
}

Job::~Job() {
  const bool failed = members_->health().failed() || std::uncaught_exceptions() > 0;
  world_.reset();
  members_.reset();
  if (server_ && !server_->wait_for_all_to_leave(failed ? kShortFarewell : farewell_)) {
    logger().warning("rank ", info_.rank,
                     " ends and takes the job's store with it, although other ranks have not left");
  }
}

Health& Job::health() { return members_->health(); }

const std::string& Job::transport_name() const { return members_->transport_name(); }

}  // namespace castor::dist
