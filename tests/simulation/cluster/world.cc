#include "tests/simulation/cluster/world.h"

#include <algorithm>
#include <utility>

namespace ps::simulation {
namespace {

constexpr std::int64_t kWelcomeMs = 2000;
constexpr std::int64_t kHeartbeatMs = 1000;
constexpr int kMissedHeartbeats = 3;

}  // namespace

const char* MutantName(Mutant mutant) {
  switch (mutant) {
    case Mutant::kNone: return "none";
    case Mutant::kUnfencedWrites: return "unfenced-writes";
    case Mutant::kSendBeforeDurable: return "send-before-durable";
    case Mutant::kAnswerBeforeWritten: return "answer-before-written";
    case Mutant::kNoSync: return "no-sync";
    case Mutant::kNoDirectorySync: return "no-directory-sync";
    case Mutant::kReleaseAtCut: return "release-at-cut";
    case Mutant::kImagesWithoutWatermarks: return "images-without-watermarks";
    case Mutant::kKeepRefused: return "keep-refused";
    case Mutant::kForgetRings: return "forget-rings";
    case Mutant::kReplayNothing: return "replay-nothing";
    case Mutant::kCutTooEarly: return "cut-too-early";
    case Mutant::kAnswerBeforeBackups: return "answer-before-backups";
    case Mutant::kTakeOldEpoch: return "take-old-epoch";
    case Mutant::kSyncedTooEarly: return "synced-too-early";
    case Mutant::kBuildOnAborted: return "build-on-aborted";
    case Mutant::kDeleteKept: return "delete-kept";
    case Mutant::kCopyAlone: return "copy-alone";
    case Mutant::kInitWithoutLoad: return "init-without-load";
  }
  return "unknown";
}

SimulatedControlClient::SimulatedControlClient(World& world, MachineId machine,
                                               RegistrationFn registration, MessageFn on_message)
    : world_(world),
      machine_(machine),
      registration_(std::move(registration)),
      on_message_(std::move(on_message)) {}

SimulatedControlClient::~SimulatedControlClient() { world_.network.Close(link_); }

void SimulatedControlClient::SetCoordinators(const ZooKeeper::Children& children) {
  const auto lowest = LowestOf(children);
  const std::string endpoint = lowest ? children.at(*lowest).data : "";
  if (endpoint == endpoint_) return;
  endpoint_ = endpoint;
  Open();
}

void SimulatedControlClient::Open() {
  world_.network.Close(link_);
  connected_ = registered_ = register_sent_ = false;
  ++timer_;
  if (endpoint_.empty()) return;
  const std::weak_ptr<void> weak(life_);
  link_ = world_.network.Connect(
      machine_, endpoint_, Network::Plane::kControl,
      [this, weak](const Packet& packet) {
        if (!weak.expired()) Receive(packet);
      },
      [this, weak](bool up) {
        if (weak.expired()) return;
        connected_ = up;
        registered_ = register_sent_ = false;
        if (up) Register();
      });
  Expect(kWelcomeMs);
}

void SimulatedControlClient::Register() {
  register_sent_ = world_.network.Send(link_, Packet{control::Encode(registration_()), {}});
  Expect(kWelcomeMs);
}

void SimulatedControlClient::Expect(std::int64_t time_ms) {
  world_.schedule.After(time_ms, machine_, life_, [this, timer = ++timer_] {
    if (timer != timer_) return;
    if (registered_) return Open();
    if (connected_) return Register();
    Expect(kWelcomeMs);
  });
}

bool SimulatedControlClient::Send(const control::MessageT& message) {
  if (endpoint_.empty() || !register_sent_) return false;
  return world_.network.Send(link_, Packet{control::Encode(message), {}});
}

void SimulatedControlClient::Receive(const Packet& packet) {
  auto decoded = control::Decode(packet.head);
  if (!decoded.ok()) return world_.history.Fail("a control message does not decode");
  control::MessageT message = std::move(decoded).value();
  std::uint64_t epoch = message.leader_epoch;
  const auto* const welcome = message.body.AsWelcome();
  if (welcome != nullptr) epoch = std::max(epoch, welcome->leader_epoch);
  if (epoch < leader_epoch_) return;
  leader_epoch_ = std::max(leader_epoch_, epoch);
  if (welcome != nullptr) {
    registered_ = true;
    registered_ms_ = world_.schedule.now_ms();
    Expect(kHeartbeatMs * kMissedHeartbeats);
  } else if (const auto* const ping = message.body.AsPing()) {
    control::PongT pong;
    pong.sent_ms = ping->sent_ms;
    world_.network.Send(link_,
                        Packet{control::Encode(control::Make(std::move(pong), message.task)), {}});
    if (registered_) Expect(kHeartbeatMs * kMissedHeartbeats);
    return;
  }
  on_message_(std::move(message));
}

}  // namespace ps::simulation
