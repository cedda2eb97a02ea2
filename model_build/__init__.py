"""The build. OpenVINO sends telemetry when it is imported, unless this package cannot be."""

import sys

# An import of the package raises ImportError from here on, which OpenVINO expects.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
