"""The certified two-sided accountant: discretised privacy losses composed by a fast Fourier transform."""
