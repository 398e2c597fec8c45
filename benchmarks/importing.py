"""Imports one module in this fresh interpreter and prints the seconds of wall and of processor time that it took."""

import sys
import time

module = sys.argv[1]
cpu = time.process_time()
wall = time.perf_counter()
__import__(module)
print(time.perf_counter() - wall, time.process_time() - cpu)
