"""What measures us against others: one command each, all sides in one run."""
