#include "cli/why.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "cli/progress.h"

namespace ps::cli {
namespace {

using Weight = Cause::Weight;

constexpr double kStraggler = 1.3;  // times slower than the median
constexpr double kMuch = 0.25;      // of the workers' time
constexpr double kRingNearlyFull = 0.9;
constexpr std::size_t kRecentEvents = 20;

std::string Percent(double share) {
  return CountText(static_cast<std::int64_t>(100.0 * share + 0.5)) + " %";
}

std::string WorkerName(const Json& worker) {
  const std::string node = TextOf(worker, "node");
  return "worker " + TextOf(worker, "worker") + (node.empty() ? "" : " on " + node);
}

double Value(const Json& json, const char* key) { return NumberOf(json, key).value_or(0); }

// The live tasks that were there at both looks, and what they did in between.
struct WorkerDelta {
  std::string number;
  std::string name;
  double clock = 0;  // at the second look
  double steps = 0;
  double samples_per_second = 0;
  double wait_data = 0, wait_pull = 0, wait_push = 0, compute = 0;  // ms
  double retained = 0;                                              // of its ring's limit

  double all() const { return wait_data + wait_pull + wait_push + compute; }
};

std::vector<WorkerDelta> Deltas(const JobLooks& looks) {
  std::map<std::pair<std::string, std::string>, const Json*> before;
  for (const Json& worker : MemberOf(looks.before, "workers")) {
    before[{TextOf(worker, "worker"), TextOf(worker, "incarnation")}] = &worker;
  }
  std::vector<WorkerDelta> deltas;
  for (const Json& worker : MemberOf(looks.after, "workers")) {
    const auto at = before.find({TextOf(worker, "worker"), TextOf(worker, "incarnation")});
    if (at == before.end() || TextOf(worker, "state") != "live") continue;
    const auto more = [&](const char* key) {
      return std::max(0.0, Value(worker, key) - Value(*at->second, key));
    };
    WorkerDelta delta;
    delta.number = TextOf(worker, "worker");
    delta.name = WorkerName(worker);
    delta.clock = Value(worker, "clock");
    delta.steps = more("steps");
    delta.samples_per_second = Value(worker, "samples_per_second");
    delta.wait_data = more("wait_data_ms");
    delta.wait_pull = more("wait_pull_ms");
    delta.wait_push = more("wait_push_ms");
    delta.compute = more("compute_ms");
    const double limit = Value(worker, "retained_limit");
    delta.retained = limit > 0 ? Value(worker, "retained_bytes") / limit : 0;
    deltas.push_back(std::move(delta));
  }
  return deltas;
}

// The newest event of a type; null if there is none.
const Json* Newest(const Json& events, const std::string& type) {
  for (auto event = events.rbegin(); event != events.rend(); ++event) {
    if (TextOf(*event, "type") == type) return &*event;
  }
  return nullptr;
}

std::string NewestText(const Json& events, const std::string& type) {
  const Json* event = Newest(events, type);
  return event == nullptr ? "" : TextOf(*event, "time") + " " + TextOf(*event, "message");
}

class Diagnosis {
 public:
  explicit Diagnosis(const JobLooks& looks)
      : looks_(looks),
        job_(looks.after),
        id_(TextOf(job_, "id", "JOB")),
        phase_(TextOf(job_, "phase")),
        workers_(Deltas(looks)) {}

  std::vector<Cause> Causes() {
    if (IsFinished(job_)) {
      Over();
    } else {
      if (phase_ == "importing") {
        Add(Weight::kFine, "its checkpoint is being imported", TextOf(job_, "reason"));
        return std::move(causes_);
      }
      if (phase_ == "suspended") {
        Add(Weight::kBlocked, "an operator has suspended the job", TextOf(job_, "reason"),
            "ds-cli job resume " + id_);
        return std::move(causes_);
      }
      if (phase_ == "queued") {
        Queued();
      } else if (phase_ == "placing" || phase_ == "recovering") {
        NotYet();
      } else {
        Progress();
      }
      if (phase_ != "queued") {
        Tasks();
        Checkpoints();
        Backups();
        Gradients();
      }
      Unsteady();
    }
    std::stable_sort(causes_.begin(), causes_.end(),
                     [](const Cause& a, const Cause& b) { return a.weight < b.weight; });
    return std::move(causes_);
  }

 private:
  void Add(Weight weight, std::string what, std::string evidence, std::string next = "") {
    causes_.push_back({weight, std::move(what), std::move(evidence), std::move(next)});
  }

  void Over() {
    const bool failed = phase_ == "failed";
    Add(failed ? Weight::kBlocked : Weight::kFine,
        failed ? "the job has failed" : "the job is over: " + phase_,
        TextOf(job_, "reason", failed ? "no reason is known" : ""),
        failed ? "ds-cli job events " + id_ + "; ds-cli job logs " + id_ : "");
  }

  // How many of a kind are ready, and how many slots agents have free.
  struct Nodes {
    int ready = 0;
    int others = 0;
    double free_slots = 0;
    double gpus = 0;
    double free_gpus = 0;
    std::string sick_gpus;  // and why
    std::string busy_with;
  };
  Nodes NodesOf(const std::string& kind) const {
    Nodes found;
    for (const Json& node : looks_.nodes) {
      if (TextOf(node, "kind") != kind) continue;
      const std::string state = TextOf(node, "state");
      ++(state == "ready" || state == "unsteady" ? found.ready : found.others);
      found.free_slots += Value(node, "free_slots");
      found.free_gpus += Value(node, "free_gpus");
      const Json& gpus = MemberOf(node, "gpus");
      if (gpus.is_array()) found.gpus += static_cast<double>(gpus.size());
      for (const Json& gpu : gpus) {
        const std::string trouble = TextOf(gpu, "trouble");
        if (trouble.empty()) continue;
        found.sick_gpus += (found.sick_gpus.empty() ? "" : ", ") + TextOf(gpu, "uuid") + " of " +
                           TextOf(node, "name") + " (" + trouble + ")";
      }
      for (const Json& job : MemberOf(node, "jobs")) {
        const std::string name = job.is_string() ? job.get<std::string>() : "";
        if (!name.empty() && found.busy_with.find(name) == std::string::npos) {
          found.busy_with += (found.busy_with.empty() ? "" : ", ") + name;
        }
      }
    }
    return found;
  }

  void Queued() {
    const Nodes servers = NodesOf("server");
    const Nodes agents = NodesOf("worker");
    const std::size_t wanted = MemberOf(job_, "workers").size();
    if (servers.ready == 0) {
      Add(Weight::kBlocked, "no ps-server is registered",
          CountText(std::int64_t{servers.others}) + " have announced themselves only",
          "start one, or look into its log: ds-cli node list");
    }
    if (agents.free_slots < static_cast<double>(wanted)) {
      Add(Weight::kBlocked, "there are too few free worker slots",
          TextOf(job_, "reason") + "; " + CountText(std::int64_t{agents.ready}) +
              " agents are ready" +
              (agents.busy_with.empty() ? "" : ", busy with " + agents.busy_with),
          "start a ps-worker, or end another job: ds-cli node list -o wide");
    }
    const double wanted_gpus = Value(job_, "gpus_per_worker") * static_cast<double>(wanted);
    if (agents.free_gpus < wanted_gpus) {
      Add(Weight::kBlocked, "there are too few free GPUs",
          TextOf(job_, "reason") + "; the agents have " +
              CountText(static_cast<std::int64_t>(agents.gpus)) + ", " +
              CountText(static_cast<std::int64_t>(agents.free_gpus)) + " of them free" +
              (agents.sick_gpus.empty() ? "" : "; sick: " + agents.sick_gpus),
          "start a ps-worker on a node with GPUs (`ps-task --devices` there says what it can use), "
          "or end another job: ds-cli node list -o wide");
    }
    if (causes_.empty()) {
      Add(Weight::kBlocked, "the job is queued", TextOf(job_, "reason", "no reason is given"),
          "ds-cli node list -o wide");
    }
  }

  void NotYet() {
    Add(Weight::kBlocked, phase_ == "placing" ? "the job is being placed" : "the job recovers",
        TextOf(job_, "reason") + LastEvent(), "ds-cli job events " + id_ + " -f");
  }

  std::string LastEvent() const {
    if (looks_.events.empty()) return "";
    const Json& event = looks_.events.back();
    return "; the newest event: " + TextOf(event, "type") + ": " + TextOf(event, "message");
  }

  // ---- running

  void Progress() {
    const double trained = Value(MemberOf(job_, "progress"), "samples_trained") -
                           Value(MemberOf(looks_.before, "progress"), "samples_trained");
    if (workers_.empty()) {
      return Add(Weight::kBlocked, "no worker trains", "none was live for the whole of the look",
                 "ds-cli job events " + id_);
    }
    const bool moved = trained > 0 || std::any_of(workers_.begin(), workers_.end(),
                                                  [](const auto& w) { return w.steps > 0; });
    FullRing(moved);
    if (!moved) {
      Stuck();
      return;
    }
    Straggler();
    TimeGoesInto();
  }

  void FullRing(bool moved) {
    for (const WorkerDelta& worker : workers_) {
      if (worker.retained < kRingNearlyFull) continue;
      Add(moved ? Weight::kRisk : Weight::kBlocked,
          worker.name +
              (moved ? " will soon have to wait for a checkpoint" : " waits for a checkpoint"),
          "the pushes that it keeps until a checkpoint has them fill " + Percent(worker.retained) +
              " of their room",
          "ds-cli ckpt list " + id_ +
              "; a larger resources.retention_mebibytes, or a smaller "
              "checkpoint.every_steps");
    }
  }

  const WorkerDelta& Last() const {
    return *std::min_element(
        workers_.begin(), workers_.end(),
        [](const WorkerDelta& a, const WorkerDelta& b) { return a.clock < b.clock; });
  }

  void Stuck() {
    const std::string seen = "no step in " + DecimalText(looks_.seconds) + " s";
    const WorkerDelta& last = Last();
    const bool apart = std::any_of(workers_.begin(), workers_.end(),
                                   [&](const auto& worker) { return worker.clock > last.clock; });
    if (apart) {
      return Add(Weight::kBlocked, "all wait for " + last.name,
                 seen + "; it is at clock " + CountText(last.clock) + ", the others are ahead" +
                     LastEvent(),
                 "ds-cli job logs " + id_ + " --worker " + last.number);
    }
    Add(Weight::kBlocked, "nothing moves", seen + LastEvent(),
        "ds-cli job events " + id_ + "; ds-cli node list; ds-cli job logs " + id_);
  }

  void Straggler() {
    if (workers_.size() < 2) return;
    std::vector<double> speeds;
    for (const WorkerDelta& worker : workers_) speeds.push_back(worker.samples_per_second);
    std::sort(speeds.begin(), speeds.end());
    const double median = speeds[speeds.size() / 2];
    const auto slowest = std::min_element(
        workers_.begin(), workers_.end(),
        [](const auto& a, const auto& b) { return a.samples_per_second < b.samples_per_second; });
    if (slowest->samples_per_second * kStraggler >= median) return;
    double waited = 0;
    double all = 0;
    for (const WorkerDelta& worker : workers_) {
      if (&worker == &*slowest) continue;
      waited += worker.wait_pull;
      all += worker.all();
    }
    const bool held_up = all > 0 && waited > kMuch * all;
    Add(held_up ? Weight::kSlow : Weight::kRisk, slowest->name + " is a straggler",
        CountText(slowest->samples_per_second) + " samples/s, the median is " + CountText(median) +
            (held_up ? "; the others spend " + Percent(waited / all) + " of their time in pulls"
                     : "; the others go on without it"),
        "training.batch_by_speed: true, or a larger training.staleness; look at what else runs "
        "there");
  }

  void TimeGoesInto() {
    WorkerDelta sum;
    for (const WorkerDelta& worker : workers_) {
      sum.wait_data += worker.wait_data;
      sum.wait_pull += worker.wait_pull;
      sum.wait_push += worker.wait_push;
      sum.compute += worker.compute;
    }
    if (sum.all() <= 0) return;
    struct Part {
      double ms;
      const char* what;
      const char* next;
    };
    const std::array<Part, 3> parts = {
        {{sum.wait_data, "workers wait for data",
          "faster storage for the data files, or fewer epochs of small leases"},
         {sum.wait_pull, "workers wait for pulls",
          "more servers or lanes, training.pull_values: increments, or a larger "
          "training.staleness"},
         {sum.wait_push, "workers wait for room for their pushes",
          "more servers or lanes, a smaller sparsification.ratio, or training.local_steps"}}};
    std::string all;
    for (const Part& part : parts) {
      all += std::string(part.what).substr(8) + " " + Percent(part.ms / sum.all()) + ", ";
    }
    all += "compute " + Percent(sum.compute / sum.all());
    for (const Part& part : parts) {
      if (part.ms < kMuch * sum.all()) continue;
      Add(Weight::kSlow,
          std::string(part.what) + " " + Percent(part.ms / sum.all()) + " of their time", all,
          part.next);
    }
    if (sum.compute >= (1 - kMuch) * sum.all()) {
      Add(Weight::kFine, "workers compute " + Percent(sum.compute / sum.all()) + " of their time",
          all, "");
    }
  }

  // ---- of any phase

  void Tasks() {
    for (const Json& worker : MemberOf(job_, "workers")) {
      const std::string state = TextOf(worker, "state");
      if (state == "live" || phase_ == "evaluating" || phase_ == "draining") continue;
      const std::string waits = NewestText(looks_.events, "waiting");
      Add(Weight::kSlow,
          WorkerName(worker) + (state == "starting" ? " is starting" : " has no task"),
          state == "starting" ? "its task is not ready yet" : waits,
          "ds-cli job events " + id_ + "; ds-cli node list");
    }
    std::size_t deaths = 0;
    std::size_t looked = 0;
    for (auto event = looks_.events.rbegin();
         event != looks_.events.rend() && looked < kRecentEvents; ++event, ++looked) {
      const std::string type = TextOf(*event, "type");
      deaths += type == "worker lost" || type == "task failed";
    }
    if (deaths >= 3) {
      Add(Weight::kSlow, "tasks keep dying", NewestText(looks_.events, "worker lost"),
          "ds-cli job logs " + id_);
    }
  }

  void Checkpoints() {
    std::size_t failed = 0;
    std::string last;
    for (const Json& event : looks_.events) {
      const std::string type = TextOf(event, "type");
      if (type == "checkpoint") failed = 0;
      if (type == "checkpoint aborted") {
        ++failed;
        last = TextOf(event, "time") + " " + TextOf(event, "message");
      }
    }
    if (failed >= 2) {
      Add(Weight::kRisk,
          "checkpoints fail: " + CountText(static_cast<std::int64_t>(failed)) +
              " since the last good one",
          last, "ds-cli ckpt list " + id_ + "; the room and the logs of the servers");
    }
  }

  void Backups() {
    const double shards = Value(job_, "shards");
    const double whole = Value(job_, "replicated_shards");
    if (Value(job_, "replicas") <= 0 || whole >= shards) return;
    Add(Weight::kRisk,
        CountText(shards - whole) + " of " + CountText(shards) + " shards lack a backup in sync",
        NewestText(looks_.events, "not replicated"),
        "it is being made, or start a ps-server: ds-cli node list");
  }

  void Gradients() {
    const Json& now = MemberOf(job_, "progress");
    const Json& then = MemberOf(looks_.before, "progress");
    if (Value(now, "skipped") > Value(then, "skipped")) {
      Add(Weight::kSlow, "steps are skipped: their gradients are not finite",
          CountText(Value(now, "skipped")) + " so far; " + NewestText(looks_.events, "not finite"),
          "a smaller learning rate, clipping, or the data that the event names");
    }
    if (Value(now, "implausible_skipped") > Value(then, "implausible_skipped")) {
      Add(Weight::kSlow, "batches are skipped: their loss or gradient norm is implausible",
          CountText(Value(now, "implausible_skipped")) + " so far; " +
              NewestText(looks_.events, "implausible"),
          "the records that the events name; if they are right, training.loss_calibration with a "
          "larger threshold, or without");
    }
    const double old = Value(now, "too_old") - Value(then, "too_old");
    if (old > 0) {
      Add(Weight::kSlow, "pushes come too late and go back into the residual",
          CountText(old) + " segments in " + DecimalText(looks_.seconds) + " s",
          "a larger training.staleness, or find the straggler");
    }
  }

  void Unsteady() {
    for (const Json& node : looks_.nodes) {
      if (TextOf(node, "state") != "unsteady") continue;
      Add(Weight::kRisk, TextOf(node, "kind") + " " + TextOf(node, "name") + " is unsteady",
          "it has failed again and again and gets nothing new",
          "its log on " + TextOf(node, "host") + ", and the state of that machine");
    }
  }

  const JobLooks& looks_;
  const Json& job_;
  const std::string id_;
  const std::string phase_;
  const std::vector<WorkerDelta> workers_;
  std::vector<Cause> causes_;
};

}  // namespace

const char* WeightName(Cause::Weight weight) {
  switch (weight) {
    case Weight::kBlocked: return "blocked";
    case Weight::kSlow: return "slow";
    case Weight::kRisk: return "risk";
    case Weight::kFine: return "fine";
  }
  return "unknown";
}

std::vector<Cause> Diagnose(const JobLooks& looks) {
  std::vector<Cause> causes = Diagnosis(looks).Causes();
  if (causes.empty()) {
    causes.push_back({Weight::kFine, "nothing is in its way",
                      "phase " + TextOf(looks.after, "phase", "unknown"), ""});
  }
  return causes;
}

}  // namespace ps::cli
