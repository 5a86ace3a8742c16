def measure_offload(place, cell, length):
    raise NotImplementedError
