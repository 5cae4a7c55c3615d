"""What a plan costs and saves: policies that choose heads, timing, quality, answers, ceilings."""
