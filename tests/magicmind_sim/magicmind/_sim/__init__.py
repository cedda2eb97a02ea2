"""The simulator itself. Whatever begins with an underscore is its own, not the SDK's."""
