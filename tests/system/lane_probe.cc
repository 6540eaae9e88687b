// Asks a server for a job's tables as somebody who has a worker's key, but perhaps not the job's
// token.
//
//   lane_probe --zookeeper HOSTS --secret FILE --key FILE --trusted FILE --job N [--token-of M]
//
// Reads from ZooKeeper where job N's first shard is, says Hello there as a live worker of the job
// with the token of job M (none: 0), and prints the name of the answer's kind, of a Nack its
// code's. Exit 1 and why, if there is no answer within 10 s.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "common/messages/control.h"
#include "common/messages/wire.h"
#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "common/zookeeper/session.h"

namespace ps {
namespace {

constexpr net::Milliseconds kDeadline{10'000};

struct Options {
  zk::Session::Options zookeeper;
  net::SecurityOptions security;
  std::uint64_t job = 0;
  std::uint64_t token_of = 0;
};

std::string NodePath(std::uint64_t job, const char* node) {
  char path[64];
  std::snprintf(path, sizeof(path), "/jobs/%010llu/%s", static_cast<unsigned long long>(job), node);
  return path;
}

class Probe {
 public:
  explicit Probe(const Options& options)
      : options_(options), session_(loop_.context(), options.zookeeper) {}

  Result<std::string> Ask() {
    PS_TRY(session_.Start());
    const std::string map_text = PS_TRY(Read(NodePath(options_.job, "map")));
    const auto map = PS_TRY(control::Decode(std::as_bytes(std::span(map_text))));
    const auto& update = *map.body.AsJobUpdate()->map;
    const auto& shard = *update.shards.at(0);
    const std::string& lane = update.servers.at(shard.server)->lanes.at(shard.lane);
    const auto state = nlohmann::json::parse(PS_TRY(Read(NodePath(options_.job, "state"))));
    std::uint32_t worker = 0;
    std::uint32_t incarnation = 0;
    for (const auto& slot : state.at("workers")) {
      if (slot.at("live")) {
        incarnation = slot.at("incarnation");
        break;
      }
      ++worker;
    }
    std::uint64_t token = 0;
    if (options_.token_of != 0) {
      const auto other = nlohmann::json::parse(PS_TRY(Read(NodePath(options_.token_of, "state"))));
      token = other.at("token");
    }

    net::Context context;
    PS_TRY(context.Secure(options_.security));
    const auto socket = PS_TRY(net::ZmqSocket::Open(loop_, context, net::ZmqKind::kDealer));
    std::optional<std::string> answer;
    const wire::LaneHeader hello(wire::kMagic, wire::kProtocolVersion,
                                 static_cast<std::uint8_t>(wire::Kind::Hello), 0, options_.job,
                                 worker, incarnation, 0, 1, update.version, 0, 0, 0, token);
    socket->OnReceive([&](net::ZmqSocket::Frames&& frames) {
      wire::Head head;
      const std::span<const std::byte> bytes(static_cast<const std::byte*>(frames.at(0).data()),
                                             frames.at(0).size());
      if (!wire::ParseInto(bytes, head).ok()) return;
      const auto kind = static_cast<wire::Kind>(head.header.kind());
      answer = kind == wire::Kind::Nack
                   ? wire::EnumNameCode(static_cast<wire::Code>(head.header.samples()))
                   : wire::EnumNameKind(kind);
    });
    PS_TRY(socket->OnConnection([&](bool connected) {
      if (!connected) return;
      net::ZmqSocket::Frames frames;
      const auto bytes = wire::BuildHead(hello, {});
      frames.push_back(net::CopyFrame(bytes.data(), bytes.size()));
      (void)socket->Send(std::move(frames));
    }));
    PS_TRY(socket->Connect(lane));
    if (!loop_.RunUntil([&] { return answer.has_value(); }, kDeadline)) {
      return Error{ErrorCode::kTimeout, lane + " does not answer"};
    }
    return *answer;
  }

 private:
  Result<std::string> Read(const std::string& path) {
    std::optional<Result<zk::NodeValue>> read;
    const auto ask = [&] {
      session_.Get(path, [&](Result<zk::NodeValue> value) { read = std::move(value); });
    };
    if (!loop_.RunUntil([&] { return session_.connected(); }, kDeadline)) {
      return Error{ErrorCode::kTimeout, session_.Trouble()};
    }
    ask();
    if (!loop_.RunUntil([&] { return read.has_value(); }, kDeadline)) {
      return Error{ErrorCode::kTimeout, path + " is not answered"};
    }
    return PS_TRY(std::move(*read)).data;
  }

  const Options options_;
  net::Loop loop_;
  zk::Session session_;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Says Hello to a lane with the token of some job");
  app.add_option("--zookeeper", options.zookeeper.hosts)->required();
  app.add_option("--secret", options.zookeeper.secret_file)->required();
  app.add_option("--key", options.security.key)->required();
  app.add_option("--trusted", options.security.trusted)->required();
  app.add_option("--job", options.job)->required();
  app.add_option("--token-of", options.token_of);
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::off);  // the answer is all that is on stdout
  const auto answer = Probe(options).Ask();
  if (!answer.ok()) {
    std::fprintf(stderr, "lane_probe: %s\n", answer.error().message.c_str());
    return 1;
  }
  std::printf("%s\n", answer->c_str());
  return 0;
}

}  // namespace
}  // namespace ps

int main(int argc, char** argv) { return ps::Main(argc, argv); }
