"""Our own C++ ExecuTorch runner, for devices without Python, and what an emulator counts instructions with."""
