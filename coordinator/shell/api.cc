// The REST API: docs/openapi.yaml has every path and field.
#include <spdlog/spdlog.h>

#include <charconv>
#include <tuple>

#include "common/error_id.h"
#include "common/net/metric_families.h"
#include "common/unguessable.h"
#include "coordinator/shell/api_roles.h"
#include "coordinator/shell/coordinator.h"
#include "coordinator/shell/metrics.h"

namespace ps::coordinator {
namespace {

constexpr std::size_t kRequestMax = 128;

int HttpStatus(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage: return 400;
    case ErrorCode::kInvalid: return 422;
    case ErrorCode::kNotFound: return 404;
    case ErrorCode::kConflict: return 409;
    case ErrorCode::kDenied: return 403;
    case ErrorCode::kUnreachable:
    case ErrorCode::kClosed: return 503;
    case ErrorCode::kTimeout: return 504;
    default: return 500;
  }
}

net::HttpResponse Json(nlohmann::json body) {
  body.emplace("apiVersion", "ds/v1");
  return net::JsonResponse(200, body);
}

net::HttpResponse From(Result<nlohmann::json> body) {
  return body.ok() ? Json(std::move(body).value()) : ApiError(body.error());
}

Result<std::uint64_t> Number(const std::string& what, const std::string& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return Error{ErrorId::kRequestBody, what + ": '" + text + "' is not a number"};
  }
  return value;
}

Result<std::uint64_t> QueryNumber(const net::HttpRequest& request, const std::string& name,
                                  std::uint64_t fallback) {
  const std::string text = request.QueryOr(name, "");
  return text.empty() ? Result<std::uint64_t>(fallback) : Number("query parameter " + name, text);
}

// Of a body: nothing if it is not there.
Result<std::optional<std::uint64_t>> MemberNumber(const nlohmann::json& body, const char* name) {
  const auto member = body.find(name);
  if (member == body.end()) return std::optional<std::uint64_t>();
  if (!member->is_number_unsigned()) {
    return Error{ErrorId::kRequestBody, std::string("`") + name + "` is not a whole number"};
  }
  return std::optional(member->get<std::uint64_t>());
}

// Of a body: false if it is not there.
Result<bool> MemberFlag(const nlohmann::json& body, const char* name) {
  const auto member = body.find(name);
  if (member == body.end()) return false;
  if (!member->is_boolean()) {
    return Error{ErrorId::kRequestBody, std::string("`") + name + "` is not true or false"};
  }
  return member->get<bool>();
}

}  // namespace

net::HttpResponse ApiError(const Error& error) {
  return net::ErrorResponse(HttpStatus(error.code), error);
}

void Coordinator::OnRequest(const net::HttpRequest& request, const net::Responder& responder) {
  if (request.path == "/healthz") {
    responder.Answer(net::TextResponse(200, "ok\n"));
    return;
  }
  if (request.path == "/metrics") {
    const net::HttpServerCounters http = http_->counters();
    const ApiAccess::Counters access = access_->counters();
    const ApiMetrics api{http.requests,
                         access.refused,
                         access.forbidden,
                         http.bad_requests + http.too_many_requests,
                         http.refused_connections,
                         http.failed_handshakes,
                         access_->certificate_until_ms()};
    responder.Answer(
        net::MetricsResponse(MetricsText(core_.get(), leadership_ ? leadership_->epoch : 0, api)));
    return;
  }
  if (request.path == "/v1/version") {
    responder.Answer(Json({{"version", PS_VERSION},
                           {"leader", core_ != nullptr},
                           {"id", options_.id},
                           {"time_ms", net::WallClockMs()},
                           {"zookeeper", options_.zookeeper}}));
    return;
  }
  if (request.path.rfind("/v1/", 0) != 0) {
    responder.Answer(ApiError({ErrorId::kNotOfTheApi, "no such path: " + request.path}));
    return;
  }
  if (!core_) {
    const std::string leader = LeaderHttp();
    if (session_->connected() && !leader.empty() && leader != url_) {
      responder.Answer(net::RedirectResponse(leader + request.target));
    } else if (leadership_) {
      responder.Answer(ApiError(
          {ErrorId::kNoLeader, "coordinator " + options_.id + " is taking over; ask again"}));
    } else {
      const std::string trouble = session_->Trouble();
      responder.Answer(
          ApiError({ErrorId::kNoLeader,
                    "no coordinator leads: " +
                        (trouble.empty() ? "the election is open; ask again" : trouble)}));
    }
    return;
  }
  Route(request, responder);
  Flush(false);
}

void Coordinator::Route(const net::HttpRequest& request, const net::Responder& responder) {
  const auto now = Now();
  const std::vector<std::string> parts = SplitPath(request.path);  // "v1", "jobs", ...
  const bool get = request.method == "GET";
  const bool post = request.method == "POST";
  const auto ticket = [&] {
    tickets_.emplace(next_ticket_, responder);
    return next_ticket_++;
  };
  const auto body = [&]() -> Result<nlohmann::json> {
    auto json = nlohmann::json::parse(request.body, nullptr, false);
    if (json.is_object()) return json;
    return Error{ErrorId::kRequestBody, "the request's body is not a JSON object"};
  };
  const auto optional_body = [&] {
    return request.body.empty() ? Result<nlohmann::json>(nlohmann::json::object()) : body();
  };
  if (parts.size() == 3 && parts[1] == "nodes" && post) {
    const auto json = body();
    if (!json.ok()) return responder.Answer(ApiError(json.error()));
    const auto name = json->find("duty");
    const auto duty =
        name != json->end() && name->is_string() ? DutyOf(name->get<std::string>()) : std::nullopt;
    if (!duty) {
      return responder.Answer(ApiError(
          {ErrorId::kRequestBody, "the body's `duty` must be full, cordoned or draining"}));
    }
    return core_->SetDuty(ticket(), parts[2], *duty, now);
  }
  if (parts.size() == 2 && parts[1] == "nodes" && get) {
    nlohmann::json nodes = core_->DescribeNodes();
    for (const auto& [name, node] : coordinators_) {
      const auto json = nlohmann::json::parse(node.data, nullptr, false);
      if (!json.is_object()) continue;
      const std::string http = json.value("http", std::string());
      nodes["nodes"].push_back({{"name", json.value("id", name)},
                                {"kind", "coordinator"},
                                {"procid", name},
                                {"host", http},
                                {"version", PS_VERSION},
                                {"state", "ready"},
                                {"jobs", nlohmann::json::array()},
                                {"leader", http == url_}});
    }
    return responder.Answer(Json(std::move(nodes)));
  }
  if (parts.size() == 2 && parts[1] == "imports" && post) {
    const auto json = body();
    if (!json.ok()) return responder.Answer(ApiError(json.error()));
    ImportOrder order;
    std::string name;
    for (const auto& [member, text, needed] :
         {std::tuple("endpoint", &order.endpoint, true),
          std::tuple("directory", &order.directory, true),
          std::tuple("manifest", &order.manifest, true), std::tuple("name", &name, false)}) {
      const auto found = json->find(member);
      if (found == json->end() && !needed) continue;
      if (found == json->end() || !found->is_string()) {
        return responder.Answer(ApiError(
            {ErrorId::kRequestBody, std::string("the body's `") + member + "` is no text"}));
      }
      *text = found->get<std::string>();
    }
    return core_->Import(ticket(), std::move(order), name, access_->OwnerOf(request), now);
  }
  if (parts.size() >= 2 && parts[1] == "jobs") {
    if (parts.size() == 2 && get) return responder.Answer(Json(core_->DescribeJobs()));
    if (parts.size() == 2 && post) {
      const auto json = body();
      if (!json.ok()) return responder.Answer(ApiError(json.error()));
      if (!json->contains("spec") || !json->at("spec").is_object()) {
        return responder.Answer(ApiError({ErrorId::kRequestBody, "the body has no object `spec`"}));
      }
      const bool dry_run = json->contains("dry_run") && json->at("dry_run").is_boolean() &&
                           json->at("dry_run").get<bool>();
      SubmitOrder order{json->at("spec").dump(), dry_run, {access_->OwnerOf(request), "", 0}};
      if (const auto named = json->find("request"); named != json->end()) {
        if (!named->is_string() || named->get_ref<const std::string&>().size() > kRequestMax) {
          return responder.Answer(
              ApiError({ErrorCode::kUsage, "`request` is not a text of at most " +
                                               std::to_string(kRequestMax) + " bytes"}));
        }
        order.origin.request = named->get<std::string>();
      }
      order.origin.token = UnguessableNumber();
      return core_->Submit(ticket(), std::move(order), now);
    }
    if (parts.size() == 3 && get) return responder.Answer(From(core_->DescribeJob(parts[2])));
    if (const auto owner = parts.size() > 2 ? core_->OwnerOf(parts[2]) : std::nullopt) {
      const auto refused = access_->AdmitToJob(request, *owner);
      if (refused) return responder.Answer(*refused);
    }
    if (parts.size() == 4 && get && parts[3] == "events") {
      const auto after = QueryNumber(request, "after", 0);
      if (!after.ok()) return responder.Answer(ApiError(after.error()));
      return responder.Answer(From(core_->DescribeEvents(parts[2], *after)));
    }
    if (parts.size() == 4 && get && parts[3] == "checkpoints") {
      return responder.Answer(From(core_->DescribeCheckpoints(parts[2])));
    }
    if (parts.size() == 4 && get && parts[3] == "logs") {
      const auto worker = QueryNumber(request, "worker", 0);
      const auto offset = QueryNumber(request, "offset", 0);
      const auto limit = QueryNumber(request, "limit", 65536);
      for (const auto* number : {&worker, &offset, &limit}) {
        if (!number->ok()) return responder.Answer(ApiError(number->error()));
      }
      return core_->ReadLog(ticket(), parts[2], static_cast<std::uint32_t>(*worker), *offset,
                            static_cast<std::uint32_t>(std::min<std::uint64_t>(*limit, 1u << 20)),
                            now);
    }
    if (parts.size() == 4 && post && parts[3] == "rebalance") {
      const auto json = optional_body();
      if (!json.ok()) return responder.Answer(ApiError(json.error()));
      const auto dry_run = MemberFlag(*json, "dry_run");
      if (!dry_run.ok()) return responder.Answer(ApiError(dry_run.error()));
      return core_->Rebalance(ticket(), parts[2], *dry_run, now);
    }
    if (parts.size() == 6 && post && parts[3] == "checkpoints" &&
        (parts[5] == "pin" || parts[5] == "unpin")) {
      const auto round = Number("checkpoint", parts[4]);
      if (!round.ok()) return responder.Answer(ApiError(round.error()));
      return core_->PinCheckpoint(ticket(), parts[2], Round(*round), parts[5] == "pin", now);
    }
    if (parts.size() == 5 && post && parts[3] == "checkpoints" && parts[4] == "prune") {
      const auto json = optional_body();
      if (!json.ok()) return responder.Answer(ApiError(json.error()));
      const auto keep = MemberNumber(*json, "keep");
      const auto all = MemberFlag(*json, "all");
      const auto dry_run = MemberFlag(*json, "dry_run");
      if (!keep.ok()) return responder.Answer(ApiError(keep.error()));
      if (!all.ok()) return responder.Answer(ApiError(all.error()));
      if (!dry_run.ok()) return responder.Answer(ApiError(dry_run.error()));
      return core_->PruneCheckpoints(ticket(), parts[2], *keep, *all, *dry_run, now);
    }
    if (parts.size() == 4 && post && parts[3] == "rollback") {
      const auto json = body();
      if (!json.ok()) return responder.Answer(ApiError(json.error()));
      const auto round = MemberNumber(*json, "round");
      const auto confirmed = MemberFlag(*json, "confirm");
      if (!round.ok()) return responder.Answer(ApiError(round.error()));
      if (!confirmed.ok()) return responder.Answer(ApiError(confirmed.error()));
      if (!round->has_value()) {
        return responder.Answer(
            ApiError({ErrorId::kRequestBody, "the body has no number `round`"}));
      }
      return core_->RollBack(ticket(), parts[2], Round(**round), *confirmed, now);
    }
    if (parts.size() == 4 && post && parts[3] == "scale") {
      const auto json = body();
      if (!json.ok()) return responder.Answer(ApiError(json.error()));
      const auto workers = MemberNumber(*json, "workers");
      const auto dry_run = MemberFlag(*json, "dry_run");
      if (!workers.ok()) return responder.Answer(ApiError(workers.error()));
      if (!dry_run.ok()) return responder.Answer(ApiError(dry_run.error()));
      if (!workers->has_value()) {
        return responder.Answer(
            ApiError({ErrorId::kRequestBody, "the body has no number `workers`"}));
      }
      return core_->Scale(ticket(), parts[2], **workers, *dry_run, now);
    }
    if (parts.size() == 4 && post && parts[3] == "suspend") {
      return core_->Suspend(ticket(), parts[2], now);
    }
    if (parts.size() == 4 && post && parts[3] == "resume") {
      return core_->Resume(ticket(), parts[2], now);
    }
    if (parts.size() == 4 && post && parts[3] == "cancel") {
      const auto json = optional_body();
      if (!json.ok()) return responder.Answer(ApiError(json.error()));
      const auto reason = json->find("reason");
      return core_->Cancel(
          ticket(), parts[2],
          reason != json->end() && reason->is_string() ? reason->get<std::string>() : std::string(),
          now);
    }
  }
  responder.Answer(ApiError(
      {ErrorId::kNotOfTheApi, request.method + " " + request.path + " is not part of the API"}));
}

}  // namespace ps::coordinator
