-- wrk's script: posts the bodies of some files in turn, and prints what was seen as one line of JSON.
-- Arguments: "Name: value" headers, then "--", then the files.

local requests, turn = {}, 0

function init(arguments)
  local headers, at = {}, 1
  while arguments[at] ~= "--" do
    local name, value = arguments[at]:match("^(.-): (.*)$")
    headers[name] = value
    at = at + 1
  end
  for number = at + 1, #arguments do
    local file = assert(io.open(arguments[number], "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    '\nRESULT {"answered": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, '
      .. '"refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    failed.status, failed.connect + failed.read + failed.write + failed.timeout))
end
