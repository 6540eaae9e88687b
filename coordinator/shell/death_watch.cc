#include "coordinator/shell/death_watch.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <utility>

#include "common/net/node_keys.h"

namespace ps::coordinator {

namespace asio = boost::asio;
using tcp = boost::asio::ip::tcp;
using boost::system::error_code;

// Shared with its pending operations, which find out through `over` that nobody cares any more.
class DeathWatch::Suspect : public std::enable_shared_from_this<Suspect> {
 public:
  // `verdict(dead)` is called once.
  Suspect(net::Loop& loop, const std::string& endpoint, const DeathWatchOptions& options,
          std::function<void(bool dead)> verdict)
      : options_(options),
        verdict_(std::move(verdict)),
        resolver_(loop.context()),
        socket_(loop.context()),
        again_(loop),
        deadline_(loop) {
    constexpr char kScheme[] = "tcp://";
    const std::string address = net::SplitKey(endpoint).address;
    const auto colon = address.rfind(':');
    if (address.rfind(kScheme, 0) == 0 && colon > sizeof(kScheme) - 1) {
      host_ = address.substr(sizeof(kScheme) - 1, colon - (sizeof(kScheme) - 1));
      port_ = address.substr(colon + 1);
      if (host_.front() == '[' && host_.back() == ']') host_ = host_.substr(1, host_.size() - 2);
    }
  }

  void Start() {
    deadline_.After(options_.patience, [this] { Decide(false); });
    if (!host_.empty()) Resolve();
  }

  void Stop() {
    over_ = true;
    resolver_.cancel();
    error_code ignored;
    socket_.close(ignored);
    again_.Cancel();
    deadline_.Cancel();
  }

 private:
  void Resolve() {
    resolver_.async_resolve(host_, port_,
                            [self = shared_from_this()](const error_code& error,
                                                        const tcp::resolver::results_type& found) {
                              if (self->over_ || error || found.empty()) return;
                              self->address_ = found.begin()->endpoint();
                              self->Probe();
                            });
  }

  void Probe() {
    error_code ignored;
    socket_.close(ignored);
    socket_.async_connect(address_, [self = shared_from_this()](const error_code& error) {
      if (self->over_) return;
      if (error == asio::error::connection_refused) return self->Decide(true);
      // It may be about to end: the kernel closes its sockets one after the other.
      self->again_.After(self->options_.probe_interval, [raw = self.get()] { raw->Probe(); });
    });
  }

  void Decide(bool dead) {
    const auto self = shared_from_this();
    Stop();
    verdict_(dead);
  }

  const DeathWatchOptions options_;
  const std::function<void(bool)> verdict_;
  tcp::resolver resolver_;
  tcp::socket socket_;
  net::Timer again_;
  net::Timer deadline_;
  std::string host_;
  std::string port_;
  tcp::endpoint address_;
  bool over_ = false;
};

DeathWatch::DeathWatch(net::Loop& loop, DeadFn dead, DeathWatchOptions options)
    : loop_(loop), dead_(std::move(dead)), options_(options) {}

DeathWatch::~DeathWatch() { Clear(); }

void DeathWatch::OnLost(const std::string& procid, const std::string& endpoint) {
  Forget(procid);
  auto suspect = std::make_shared<Suspect>(loop_, endpoint, options_, [this, procid](bool dead) {
    const std::string copy = procid;  // this function goes with the suspect
    suspects_.erase(copy);
    if (dead) dead_(copy);
  });
  suspects_[procid] = suspect;
  suspect->Start();
}

void DeathWatch::Forget(const std::string& procid) {
  const auto at = suspects_.find(procid);
  if (at == suspects_.end()) return;
  at->second->Stop();
  suspects_.erase(at);
}

void DeathWatch::Clear() {
  for (const auto& [procid, suspect] : suspects_) suspect->Stop();
  suspects_.clear();
}

}  // namespace ps::coordinator
